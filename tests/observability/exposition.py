"""Reads Prometheus' text format: what a test asks about a page of /metrics."""

from __future__ import annotations

import re
from collections import defaultdict

_LINE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})? (\S+)")
_LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')


class Page:
    """Attributes: `kinds` by metric, `samples[name][labels]`, labels as sorted pairs."""

    def __init__(self, text):
        self.kinds, self.samples = {}, defaultdict(dict)
        for line in text.splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                assert name not in self.kinds, f"{name} is declared twice"
                self.kinds[name] = kind
            elif not line.startswith("#"):
                name, labels, value = _LINE.fullmatch(line).groups()
                key = tuple(sorted(_LABEL.findall(labels or "")))
                assert key not in self.samples[name], f"{line} comes twice"
                self.samples[name][key] = float(value)

    def value(self, name, **labels):
        """Of the one sample whose labels include these."""
        found = [v for key, v in self.samples[name].items() if labels.items() <= dict(key).items()]
        assert len(found) == 1, (name, labels, found)
        return found[0]

    def series(self):
        """Every name that a query can ask for."""
        names = set()
        for name, kind in self.kinds.items():
            parts = ("_bucket", "_sum", "_count") if kind == "histogram" else ("",)
            names |= {name + part for part in parts}
        return names
