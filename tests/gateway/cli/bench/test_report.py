"""The bench's arithmetic, and its report: complete, self-contained, and true about simulated fleets."""

import io
import json
import re
import xml.etree.ElementTree as ET

import pytest
from rich.console import Console

from gateway.cli.bench.chat_client import Sample
from gateway.cli.bench.figures import Spread, evaluate
from gateway.cli.bench.html_report import About, render_html
from gateway.cli.bench.svg import Bar, Line, Range, bars, lines, ranges
from gateway.cli.bench.text_report import text_report

SMALL, LARGE = "Qwen/Qwen3-1.7B", "<b>Qwen/Qwen3.6-27B</b>"
TIERS = ("helexa/small", "helexa/large")
MODELS = {
    "helexa/small": {"alias_of": SMALL},
    SMALL: {"cost": {"input": 1.0, "output": 2.0}},
    "helexa/large": {"alias_of": LARGE},
}
NODE = {
    "name": "beast",
    "kind": "neuron",
    "devices": [{"name": "RTX 3090", "vram_total_mb": 24576}],
    "models": [{"id": SMALL, "routable": True}],
}


def sample(tier="helexa/small", phase="question", total_s=2.5, **more):
    target = SMALL if tier == "helexa/small" else LARGE
    usual = {"question": "capital", "kind": "facts", "concurrency": 1, "began_s": 0.0, "node": "beast"}
    return Sample(**usual | {"tier": tier, "target": target, "phase": phase, "total_s": total_s} | more)


def a_run(**more):
    """Samples of every phase."""
    found = []
    for tier, total_s in zip(TIERS, (2.5, 6.7), strict=True):
        usage = {"tokens_in": 100, "tokens_out": 11, "first_token_s": 1.0, "decode_s": 0.5} | more
        found += [sample(tier, "probe", total_s, **usage) for _ in range(3)]
        found += [sample(tier, kind=kind, **usage) for kind in ("facts", "arithmetic", "code")]
        found += [sample(tier, kind="facts", verdict="wrong answer", reason="no", text="Sydney <i>", **usage)] * 3
        for level in (1, 4, 16):
            found += [sample(tier, "load", concurrency=level, began_s=10.0, **usage) for _ in range(level)]
    return [*found, sample("cold/one", "cold", 42.125, target="cold/one", first_token_s=40.0)]


def about(**more):
    usual = {
        "gateway": "http://gpu-1:31313",
        "date": "2026-01-02 03:04",
        "took_s": 250.0,
        "plan": "full",
        "version": "1.2.3",
        "models": MODELS,
        "nodes": [NODE],
        "expected": {"capital": "Canberra"},
    }
    return About(**usual | more)


def test_figures():
    """Medians, speeds from the first token on, throughput over the time of all, and prices per 1,000 questions."""
    figures = evaluate(a_run(), TIERS, MODELS)
    small, large = figures.tiers

    assert figures.ratio == pytest.approx(2.68)
    assert (small.correct["facts"], small.asked["facts"], small.correct["code"]) == (1, 4, 1)
    assert (small.tokens_per_s, small.tokens_out, small.failed) == (20.0, 11, 0)
    assert small.usd_per_1000 == pytest.approx(1000 * (100 * 1 + 11 * 2) / 1e6)
    assert large.usd_per_1000 is None
    assert [(load.tier, load.concurrency, load.requests) for load in figures.loads][:2] == [
        ("helexa/small", 1, 1),
        ("helexa/small", 4, 4),
    ]
    assert figures.loads[2].all_tokens_per_s == pytest.approx(16 * 11 / 2.5)
    assert (figures.cold[0].model, figures.cold[0].total_s) == ("cold/one", 42.125)


def test_failures_count_and_have_no_time():
    """A refusal in 1 ms is not a fast answer."""
    samples = [sample(total_s=2.0), sample(total_s=0.001, verdict="failed", reason="status 503")]
    (tier,) = evaluate(samples, ["helexa/small"], {}).tiers
    assert (tier.total, tier.failed, sum(tier.correct.values())) == (Spread(2.0, 2.0), 1, 1)
    assert evaluate([], TIERS, {}).ratio is None


def test_spread_is_median_and_nearest_rank():
    """The p95 is a measured value: of 20 the 19th, of few the largest."""
    assert Spread.of([float(value) for value in range(20, 0, -1)]) == Spread(10.5, 19.0)
    assert Spread.of([9.0, None, 1.0, 3.0]) == Spread(3.0, 9.0)
    assert Spread.of([None]) is None


@pytest.mark.parametrize("changed", [{"tokens_out": 2}, {"decode_s": 0.0}, {"decode_s": None}])
def test_speed_of_too_little_is_unknown(changed):
    """Two tokens in two reads show no speed."""
    assert evaluate(a_run(**changed), TIERS, MODELS).tiers[0].tokens_per_s is None


def test_page_needs_nothing_but_a_browser():
    """No script, no address but the gateway's; light and dark; every chart is well-formed, every name escaped."""
    page = render_html(evaluate(a_run(), TIERS, MODELS), a_run(), about())

    assert "<script" not in page
    assert not re.search(r"(?:src|href|url\()", page)
    assert {url.rstrip(",.") for url in re.findall(r"https?://[^\s<\"]+", page)} == {"http://gpu-1:31313"}
    assert "prefers-color-scheme: dark" in page
    assert "<b>Qwen" not in page
    assert "<i>" not in page
    charts = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(charts) == 6
    for chart in charts:
        assert ET.fromstring(chart).find("title").text  # noqa: S314 - our own page


def test_page_tells_everything():
    """Title, models, fleet, the ratio beside the reference, correctness by kind, loads, cold start, cost, mistakes."""
    page = render_html(evaluate(a_run(), TIERS, MODELS), a_run(), about(interrupted=True))
    for text in (
        "<title>cortex bench: http://gpu-1:31313, 2026-01-02 03:04</title>",
        "full run, 4.2 min",
        "RTX 3090 (24 GB)",
        "helexa/large takes 2.68 times as long as helexa/small; the reference is 2.68",
        "JSON by schema",
        "1 of 4",
        "42.1 s, first token 40.0 s",
        "0.122 USD",
        "6 answers that are not correct",
        "Canberra",
        "The run was interrupted.",
    ):
        assert text in page, text
    assert page.count("Sydney") == 1, "three equal mistakes of two tiers are one line"
    assert "simulated" not in page


def test_simulated_fleet_has_no_correctness():
    """Neither in the page, nor in JSON, nor on the terminal; the notice says why."""
    samples = a_run(simulated=True)
    figures = evaluate(samples, TIERS, MODELS)
    page = render_html(figures, samples, about())
    shown = io.StringIO()
    Console(width=200, file=shown).print(*text_report(figures))

    assert "These figures are simulated." in page
    assert "simulated" in shown.getvalue()
    for text in (page, shown.getvalue()):
        assert "1 of 4" not in text
        assert "1/4" not in text
        assert "Sydney" not in text
    body = json.loads(json.dumps(figures.as_json()))
    assert (body["simulated"], body["tiers"][0]["correct"]) == (True, None)


def test_terminal_has_ratio_and_correctness():
    shown = io.StringIO()
    Console(width=200, file=shown, markup=False).print(*text_report(evaluate(a_run(), TIERS, MODELS)))
    text = shown.getvalue()
    assert "helexa/large takes 2.68 times as long as helexa/small (reference: 2.5 s, 6.7 s, ratio 2.68)" in text
    assert "1/4" in text
    assert "42.12" in text


def test_page_of_nothing_is_a_page():
    """An interrupted run still ends with its report."""
    assert "</html>" in render_html(evaluate([], TIERS, MODELS), [], about(nodes=[]))


@pytest.mark.parametrize("value", [1e-6, 0.3, 1, 7, 123456.0])
def test_charts_of_any_size_are_well_formed(value):
    """Texts fit: they begin inside the picture, and labels at the end of lines do not overlap."""
    charts = (
        bars([Bar("a", value, "x" * 30, "s1"), Bar("b", 0.0, "", "s2")], "t"),
        ranges([Range("a", value / 2, value, "text", "s1")], "t", "s"),
        lines(["1", "4"], [Line("a", [None, value], "s1"), Line("b", [value, value], "s2")], "t", "s"),
    )
    for chart in charts:
        for text in ET.fromstring(chart).findall("text"):  # noqa: S314 - our own chart
            assert 0 <= float(text.get("x")) < 720
    ends = [float(text.get("y")) for text in ET.fromstring(charts[2]).findall("text[@class='value']")]  # noqa: S314
    assert abs(ends[0] - ends[1]) >= 18
