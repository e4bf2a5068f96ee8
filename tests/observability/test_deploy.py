"""The dashboard and the alert rules ask only for what /metrics has: names, suffixes, labels."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from octavo.request import EngineStats
from octavo.server.metrics import Metrics
from tests.observability.exposition import Page

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
OF_PROMETHEUS = {"instance", "le"}
NAME = re.compile(r"(?:octavo:|vllm:|process_)[a-z0-9_]+")


def expressions():
    for panel in PANELS:
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((f"${each['name']}", each["query"]["query"]) for each in DASHBOARD["templating"]["list"][1:])
    yield from ((rule["alert"], rule["expr"]) for rule in RULES)


EXPRESSIONS = list(expressions())


@pytest.fixture(scope="module")
def page():
    metrics = Metrics()
    metrics.replied("/v1/completions", 200)
    return Page(metrics.text("m", EngineStats(num_pages=1), cache={"block_size": 16}))


def labels_of(expression):
    """Names in matchers and in by (...), on (...)."""
    found = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for inner in re.findall(r"\b(?:by|on)\s*\(([^)]*)\)", expression):
        found |= {name.strip() for name in inner.split(",")}
    return found


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[f"{w}-{i}" for i, (w, _) in enumerate(EXPRESSIONS)])
def test_every_metric_and_label_exists(page, where, expression):
    names = NAME.findall(expression)
    assert names, f"{where} asks for nothing"
    assert set(names) <= page.series()
    known = {key for name in names for labels in page.samples[name] for key, _ in labels}
    assert labels_of(expression) <= known | OF_PROMETHEUS
    assert expression.count("(") == expression.count(")") and expression.count("{") == expression.count("}")


@pytest.mark.parametrize(("where", "expression"), EXPRESSIONS, ids=[f"{w}-{i}" for i, (w, _) in enumerate(EXPRESSIONS)])
def test_counters_are_asked_for_rates_and_gauges_are_not(page, where, expression):
    for name in NAME.findall(expression):
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        counts = page.kinds.get(name, page.kinds.get(base)) in ("counter", "histogram")
        rated = re.search(r"\b(?:rate|increase)\(" + re.escape(name) + r"\b", expression) is not None
        assert rated == counts, (where, name)


def test_the_check_finds_what_does_not_exist(page):
    assert "octavo:no_such_total" not in page.series()
    assert "octavo:step_time_seconds" not in page.series() and "octavo:step_time_seconds_bucket" in page.series()
    assert labels_of('sum by (route, le) (rate(x{status=~"5.."}[5m]))') == {"route", "le", "status"}


def test_states_and_reasons_in_rules_exist(page):
    known = {v for name in page.samples for labels in page.samples[name] for k, v in labels if k != "le"}
    for rule in RULES:
        for label, values in re.findall(r'(state|finished_reason)=~?"([^"]*)"', rule["expr"]):
            assert set(values.split("|")) <= known, (rule["alert"], label)


def test_rules_say_what_to_do():
    assert len({rule["alert"] for rule in RULES}) == len(RULES) >= 10
    for rule in RULES:
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"]["summary"] and rule["annotations"]["description"].endswith(".")


def test_panels_do_not_overlap_and_explain_themselves():
    taken = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"])
                 for y in range(place["y"], place["y"] + place["h"])}  # fmt: skip
        assert not cells & taken and max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
    assert all(panel["description"] and panel["fieldConfig"]["defaults"]["unit"] for panel in PANELS)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
