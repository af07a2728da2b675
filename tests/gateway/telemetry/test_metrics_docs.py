"""docs/metrics.md lists every metric with type, labels and meaning. `--write-docs` writes the table."""

from __future__ import annotations

import re
from pathlib import Path

from fakes.fleets import a_fleet, answers

from gateway.fleet.reports import DeviceReport
from gateway.telemetry.metrics import CatalogueReadings, Metrics, RolloutReading

DOCUMENT = Path(__file__).parents[3] / "docs" / "metrics.md"
BEGIN, END = "<!-- begin: written by tests/gateway/telemetry/test_metrics_docs.py --write-docs -->", "<!-- end -->"
HEAD = "| metric | type | labels | meaning |\n| --- | --- | --- | --- |\n"


def all_families():
    """Every metric that a gateway can export, whether it has a sample or not."""
    metrics, fleet = Metrics(per_key=True), a_fleet("a")
    answers(fleet, "a", devices=(DeviceReport(0, "GPU", 8, None, 1, 7, 50.0, 40.0, 300.0),))
    metrics.watch_process()
    metrics.watch_fleet(lambda: fleet.snapshot().nodes)
    metrics.watch_queue(lambda: {("m", "interactive"): 1})
    metrics.watch_rollouts(lambda: [RolloutReading("tier", 1, {"errors": 1.0})])
    metrics.watch_catalogue(lambda: CatalogueReadings(1, True, {"applied": 1}, {"a": True, "b": False}))
    labels = {}
    for collector in metrics.registry._collector_to_names:
        labelled = getattr(collector, "_labelnames", ())
        for family in collector.collect():
            names = {name for sample in family.samples for name in sample.labels} - {"le"}
            labels[family.name] = tuple(labelled) or tuple(sorted(names))
            yield family, labels[family.name]


def row(family, labels):
    name = f"{family.name}_total" if family.type == "counter" else family.name
    shown = ", ".join(f"`{label}`" for label in labels) or "-"
    return f"| `{name}` | {family.type} | {shown} | {family.documentation} |"


def test_every_metric_is_in_the_docs(request):
    rows = sorted({row(family, labels) for family, labels in all_families()})
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    if request.config.getoption("--write-docs"):
        table = "\n".join(rows)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{HEAD}{table}\n\n{END}{rest.partition(END)[2]}")
    assert [line for line in rest.partition(END)[0].splitlines() if line.startswith("| `")] == rows


def test_metrics_have_base_units_and_help():
    """What `promtool check metrics` demands: no MB, no percent, no milliseconds, and a help text."""
    for family, _ in all_families():
        assert family.documentation, family.name
        assert not re.search(r"_(mb|pct|ms|percent|minutes|hours)\b", f"{family.name}_") or family.name == (
            "cortex_rollout_percent"
        ), family.name
