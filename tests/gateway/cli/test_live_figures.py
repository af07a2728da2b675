"""Rates and quantiles per neuron, from scrapes of the product's own metrics; and the tables of `cortex status`."""

import re

import pytest
from fakes.fleets import a_fleet, a_gpu, a_model, answers

from gateway.cli.live_figures import LiveFigures, parse_scrape
from gateway.cli.terminal import console
from gateway.cli.views import status_view
from gateway.telemetry.metrics import Metrics


def scrape(metrics, at):
    return parse_scrape(metrics.expose().decode(), at)


def test_figures_are_rates_over_the_window():
    """Requests and tokens per second, quantiles of what came in the window, and the devices now."""
    metrics, fleet = Metrics(), a_fleet("a", "b")
    answers(fleet, "a", a_model("m"), devices=(a_gpu(), a_gpu(1)))
    metrics.watch_fleet(lambda: fleet.snapshot().nodes)
    figures = LiveFigures()
    for _ in range(100):
        metrics.requests("m", "a").inc()
        metrics.first_token("m", "a").observe(100)  # before the window
    figures.add(scrape(metrics, 0.0))
    assert figures.window_s == 0
    for _ in range(20):
        metrics.requests("m", "a").inc()
        metrics.first_token("m", "a").observe(0.3)
        metrics.completion_tokens("m", "a").inc(50)
        metrics.estimated_completion_tokens("m", "a").inc(50)
    figures.add(scrape(metrics, 10.0))

    a, b = figures.by_neuron()
    assert (a.node, a.requests_per_s, a.tokens_per_s) == ("a", 2.0, 200.0)
    assert 0.25 < a.first_token_p50_s < a.first_token_p95_s <= 0.5
    assert (b.node, b.requests_per_s, b.first_token_p50_s, b.utilization) == ("b", 0.0, None, ())


def test_window_slides_and_survives_a_restart():
    """Old scrapes are dropped; counters that began again do not give negative rates."""
    metrics, figures = Metrics(), LiveFigures()
    for at in range(0, 100, 2):
        metrics.requests("m", "a").inc(4)
        figures.add(scrape(metrics, float(at)))
    assert figures.window_s == 30
    assert figures.by_neuron()[0].requests_per_s == 2.0
    restarted = Metrics()
    restarted.requests("m", "a").inc(10)
    figures.add(scrape(restarted, 100.0))
    assert figures.by_neuron()[0].requests_per_s == pytest.approx(10 / 30)


def test_text_that_is_no_metrics_is_a_value_error():
    with pytest.raises(ValueError):
        parse_scrape("<html>\n", 0.0)


CATALOGUE = {"generation": 3, "path": "/etc/m.toml", "error": None}
HEALTH = {"status": "ok", "problems": [], "nodes": {"healthy": 2, "total": 3, "drained": 1}, "catalogue": CATALOGUE}


def shown(capsys, state, *more):
    console().print(status_view.render(state, *more))
    return capsys.readouterr().out


def test_status_opens_with_the_problems(capsys):
    """Directly below the headline: code, subject, time, text."""
    problem = {"code": "node_down", "subject": "beast", "text": "refused", "since": 1_700_000_000.0}
    lines = shown(capsys, {"health": HEALTH | {"problems": [problem]}, "models": []}).splitlines()
    assert "2 of 3 neurons healthy, 1 drained" in lines[0]
    assert re.search(r"node_down  beast  since 2023-11-1\d \d\d:\d\d: refused", lines[1])


def test_status_shows_twenty_problems_and_counts_the_rest(capsys):
    problems = [
        {"code": "model_unservable", "subject": f"m{n}", "text": f"down {n}", "since": 1_700_000_000.0}
        for n in range(25)
    ]
    out = shown(capsys, {"health": HEALTH | {"problems": problems}, "models": []})
    assert out.count("model_unservable") == 20
    assert "and 5 more: `cortex status --json` lists all" in out


ROLLOUT = {
    "alias": "tier",
    "target": "n",
    "state": "running",
    "step": 2,
    "steps": 4,
    "percent": 25.0,
    "elapsed_s": 40.0,
    "every_s": 60.0,
    "requests_old": 75,
    "requests_new": 25,
    "waits_for": "time",
    "guards": {"ttft": 1.0, "errors": 0.25},
}


def test_status_shows_every_alias_with_all_targets_and_its_rollout(capsys):
    """Weights as shares, where each target is, and an alias that /v1/models does not list."""
    aliases = [
        {"name": "dead", "targets": [{"model": "lost", "weight": 1.0}], "state": "unservable", "rollout": None},
        {
            "name": "tier",
            "targets": [{"model": "m", "weight": 75.0}, {"model": "n", "weight": 25.0}],
            "state": "ok",
            "rollout": ROLLOUT,
        },
    ]
    model = {"id": "m", "loaded": True, "feasible_on": [], "locations": [{"node": "a", "status": "loaded"}]}
    model["locations"][0]["vram_estimate_mb"] = 1
    out = shown(capsys, {"health": HEALTH | {"aliases": aliases}, "models": [model]})
    rows = [line.split() for line in out.splitlines()]
    assert ["dead", "lost", "100", "%", "nowhere", "unservable", "-"] in rows
    assert ["n", "25", "%", "nowhere"] in rows
    [tier] = [line for line in out.splitlines() if line.startswith("tier")]
    assert "75 %" in tier
    assert "step 2 of 4: n gets 25 %, 40 of 60 s; waits for time; requests 75 old, 25 new" in tier
    assert "guards (1 far, 0 trips): errors 0.25, ttft 1.00" in tier


def test_status_says_how_to_acknowledge_a_rollback(capsys):
    rollout = {"state": "rolled_back", "target": "n", "reason": "errors: 3 of 4", "ended": 1.0}
    alias = {"name": "tier", "targets": [{"model": "m", "weight": 1.0}], "state": "ok", "rollout": rollout}
    out = shown(capsys, {"health": HEALTH | {"aliases": [alias]}, "models": []})
    assert "rolled back from n: errors: 3 of 4; `cortex alias rollout tier --acknowledge` removes this" in out


def test_status_without_token_lists_drained_neurons_and_those_that_are_down(capsys):
    """From the problems, also if they have no model."""
    problems = [
        {"code": "node_down", "subject": "gone", "text": "refused", "since": 1.0},
        {"code": "node_drained", "subject": "benjy", "text": "gets no new requests", "since": 1.0},
        {"code": "node_drained", "subject": "gone", "text": "gets no new requests", "since": 1.0},
    ]
    out = shown(capsys, {"health": HEALTH | {"problems": problems}, "models": []})
    rows = [line.split()[:3] for line in out.splitlines()]
    assert ["benjy", "drained", "0"] in rows
    assert ["gone", "down,", "drained"] in rows


def test_status_shows_the_figures(capsys):
    metrics, figures = Metrics(), LiveFigures()
    metrics.requests("m", "a").inc(0)
    figures.add(scrape(metrics, 0.0))
    metrics.requests("m", "a").inc(20)
    figures.add(scrape(metrics, 10.0))
    out = shown(capsys, {"health": HEALTH, "models": []}, figures)
    assert "last 10 s" in out
    assert ["a", "2.0", "0", "-", "-", "-"] in [line.split() for line in out.splitlines()]
    assert "not shown: refused" in shown(capsys, {"health": HEALTH, "models": []}, None, "refused")
