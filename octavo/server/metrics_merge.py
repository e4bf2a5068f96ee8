"""One page of metrics from those of several processes that serve together."""

from __future__ import annotations

from collections.abc import Iterable

_COUNTED = frozenset(
    (
        "prompt_tokens_cached_total",
        "request_success_total",
        "admission_rejections_total",
        "http_replies_total",
        "process_cpu_seconds_total",
    )
)
"""Counters of the processes themselves; all other counters are of the one engine that they share."""
_OPEN = frozenset(("num_requests_open", "process_resident_memory_bytes", "process_open_fds"))
_FIRST = frozenset(("process_start_time_seconds",))


def merge(own: str, others: Iterable[str], retired: str = "") -> str:
    """A page for all processes.

    Histograms and what each process counts itself are added up, also of processes that are no more; so are open
    requests, memory and descriptors. The engine's counters are the highest that any process has heard of (each hears
    once a second), its gauges those of `own`.

    Args:
        own: the page of the process that answers; it gives the order of lines.
        others: of the other processes.
        retired: of processes that have ended, as `counted` made it.
    """
    kinds = _kinds(own)
    values = _samples(own)
    for page in others:
        for key, value in _samples(page).items():
            _take(values, key, value, kinds)
    for key, value in _samples(retired).items():
        values[key] = values.get(key, 0.0) + value
    return _text(own, values)


def counted(page: str, before: str = "") -> str:
    """What stays of a process's page when it has ended: what it counted, added to what those before it had."""
    kinds = _kinds(page)
    kept = _samples(before)
    for key, value in _samples(page).items():
        if _adds_up(_family(key, kinds), kinds) and _bare(_family(key, kinds)) not in _OPEN:
            kept[key] = kept.get(key, 0.0) + value
    return "".join(f"{key} {_number(value)}\n" for key, value in kept.items())


def _take(values: dict[str, float], key: str, value: float, kinds: dict[str, str]) -> None:
    family = _family(key, kinds)
    if key not in values or _adds_up(family, kinds):
        values[key] = values.get(key, 0.0) + value
    elif _bare(family) in _FIRST:
        values[key] = min(values[key], value)
    elif kinds.get(family) == "counter":
        values[key] = max(values[key], value)


def _adds_up(family: str, kinds: dict[str, str]) -> bool:
    return kinds.get(family) == "histogram" or _bare(family) in _COUNTED or _bare(family) in _OPEN


def _bare(family: str) -> str:
    return family.rpartition(":")[2]


def _family(key: str, kinds: dict[str, str]) -> str:
    """The metric that a sample is of."""
    name = key.partition("{")[0]
    if name not in kinds:
        for suffix in ("_bucket", "_sum", "_count"):
            if name.endswith(suffix) and name.removesuffix(suffix) in kinds:
                return name.removesuffix(suffix)
    return name


def _kinds(page: str) -> dict[str, str]:
    return dict(line.split(" ")[2:4] for line in page.splitlines() if line.startswith("# TYPE "))


def _samples(page: str) -> dict[str, float]:
    """In the order of the page; a sample's key is its name with its labels."""
    pairs = (line.rpartition(" ") for line in page.splitlines() if line and not line.startswith("#"))
    return {key: float(value) for key, _, value in pairs}


def _text(order: str, values: dict[str, float]) -> str:
    """Values in the order of a page's lines; samples that the page has not come after the last of their metric."""
    kinds = _kinds(order)
    known = {line.rpartition(" ")[0] for line in order.splitlines() if not line.startswith("#")}
    new: dict[str, list[str]] = {}
    for key in values:
        if key not in known:
            new.setdefault(_family(key, kinds), []).append(key)
    lines: list[str] = []
    current = ""
    for line in order.splitlines():
        if line.startswith("#"):
            family = line.split(" ")[2]
            if family != current:
                lines += [f"{key} {_number(values[key])}" for key in new.pop(current, ())]
            current = family
            lines.append(line)
            continue
        key = line.rpartition(" ")[0]
        lines.append(f"{key} {_number(values[key])}")
    lines += [f"{key} {_number(values[key])}" for key in new.pop(current, ())]
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) else repr(value)
