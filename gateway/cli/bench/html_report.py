"""The report as one HTML file: no script, no font, no picture from elsewhere; light and dark. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from gateway.cli.bench.chat_client import Sample
from gateway.cli.bench.figures import (
    REFERENCE_LARGE_S,
    REFERENCE_RATIO,
    REFERENCE_SMALL_S,
    Figures,
)
from gateway.cli.bench.questions import KINDS
from gateway.cli.bench.svg import Bar, Line, Range, bars, lines, ranges

__all__ = ["About", "render_html"]

WRONG_SHOWN = 60  # wrong answers; 42 questions to four tiers are 168


@dataclass(frozen=True, slots=True)
class About:
    """What the report says of the run. `nodes` are those of `/admin/fleet`; empty without a key."""

    gateway: str
    date: str
    took_s: float
    plan: str
    version: str
    models: Mapping[str, Mapping[str, Any]]
    nodes: Sequence[Mapping[str, Any]]
    expected: Mapping[str, str]
    interrupted: bool = False


def render_html(figures: Figures, samples: Sequence[Sample], about: About) -> str:
    """The whole page."""
    parts = [
        _header(about),
        _notices(figures, about),
        _tiles(figures),
        _setup(figures, about),
        _ratio(figures),
        _correctness(figures),
        _latency(figures),
        _load(figures),
        _cold(figures),
        _cost(figures),
        _wrong_answers(figures, samples, about),
        _method(about),
    ]
    style = resources.files(__package__).joinpath("report.css").read_text(encoding="utf-8")
    title = escape(f"cortex bench: {about.gateway}, {about.date}")
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _header(about: About) -> str:
    facts = f"{about.date} · {about.plan} run, {_duration(about.took_s)} · cortex {about.version}"
    return f"<header><h1>Bench of {escape(about.gateway)}</h1><p>{escape(facts)}</p></header>"


def _notices(figures: Figures, about: About) -> str:
    notices = []
    if figures.simulated:
        notices.append(
            "<strong>These figures are simulated.</strong> Simulated neurons answered, which pace their answers like"
            " real models but run none. Times, speeds and loads show how cortex works with such a fleet. The answers"
            " are made up, so this report does not say how many of them are correct."
        )
    if about.interrupted:
        notices.append("<strong>The run was interrupted.</strong> The report has what was measured until then.")
    return "\n".join(f'<p class="notice">{notice}</p>' for notice in notices)


def _tiles(figures: Figures) -> str:
    tiles = []
    if figures.ratio is not None:
        tiles.append((f"{figures.ratio:.2f} times", f"large to small, reference {REFERENCE_RATIO:.2f}"))
    for tier in figures.tiers:
        right, asked = sum(tier.correct.values()), sum(tier.asked.values())
        if asked and not figures.simulated:
            tiles.append((f"{right} of {asked}", f"correct, {tier.tier}"))
    tiles += [
        (_seconds(tier.first_token.median), f"to the first token, {tier.tier}")
        for tier in figures.tiers
        if tier.first_token is not None
    ]
    cells = "".join(f"<div><b>{escape(value)}</b><span>{escape(label)}</span></div>" for value, label in tiles)
    return f'<section class="tiles">{cells}</section>' if tiles else ""


def _setup(figures: Figures, about: About) -> str:
    rows = [(tier.tier, tier.model, ", ".join(tier.nodes) or "unknown") for tier in figures.tiers]
    tiers = _table(("tier", "model", "answered by"), rows)
    devices = [
        (
            str(node["name"]),
            str(node["kind"]),
            ", ".join(_device(device) for device in node["devices"] or ()) or "unknown",
            ", ".join(model["id"] for model in node["models"] if model["routable"]) or "none",
        )
        for node in about.nodes
    ]
    fleet = _table(("neuron", "kind", "GPUs", "models loaded at the end"), devices) if devices else _no_fleet(figures)
    return _section("What was measured", "", tiers + fleet)


def _no_fleet(figures: Figures) -> str:
    nodes = sorted({node for tier in figures.tiers for node in tier.nodes})
    named = f"Neurons that answered: {', '.join(nodes)}. " if nodes else ""
    return (
        f"<p>{escape(named)}The gateway tells the GPUs of its fleet only to a key with the verb <code>read</code>.</p>"
    )


def _device(device: Mapping[str, Any]) -> str:
    return f"{device['name']} ({device['vram_total_mb'] / 1024:.0f} GB)"


def _ratio(figures: Figures) -> str:
    rows = [
        Bar("reference, small", REFERENCE_SMALL_S, f"{REFERENCE_SMALL_S} s", "muted"),
        Bar("reference, large", REFERENCE_LARGE_S, f"{REFERENCE_LARGE_S} s", "muted"),
    ]
    rows += [
        Bar(tier.tier, tier.probe.median, _seconds(tier.probe.median), _style(at))
        for at, tier in enumerate(figures.tiers)
        if tier.probe is not None
    ]
    if len(rows) == 2:
        return ""
    small, large = figures.tiers[0].tier, figures.tiers[-1].tier
    headline = (
        "How long one short answer takes"
        if figures.ratio is None
        else f"{large} takes {figures.ratio:.2f} times as long as {small}; the reference is {REFERENCE_RATIO:.2f}"
    )
    text = (
        'The question "What is the capital of Georgia?", one at a time, from sending to the last byte; medians. The'
        " reference times were measured on the machines on which this project began. On other machines compare the"
        " ratio only."
    )
    return _section(headline, text, bars(rows, headline))


def _correctness(figures: Figures) -> str:
    asked = sum(sum(tier.asked.values()) for tier in figures.tiers)
    if figures.simulated or not asked:
        return ""
    body = []
    for tier in figures.tiers:
        cells = "".join(_share_cell(tier.correct[kind], tier.asked[kind]) for kind in KINDS)
        total = _share_cell(sum(tier.correct.values()), sum(tier.asked.values()))
        body.append(f"<tr><th>{escape(tier.tier)}</th>{cells}{total}</tr>")
    head = "".join(f"<th>{escape(kind)}</th>" for kind in (*KINDS, "all"))
    table = f'<div class="wide"><table class="shares"><tr><th>tier</th>{head}</tr>{"".join(body)}</table></div>'
    best = max(figures.tiers, key=lambda tier: sum(tier.correct.values()))
    headline = (
        f"{best.tier} answers most questions correctly: {sum(best.correct.values())} of {sum(best.asked.values())}"
    )
    text = (
        "Short questions with one right answer, which a program checks: the words, the number, the JSON object, the"
        " tool and its arguments, the code by running it on test cases. Temperature 0, one try each."
    )
    return _section(headline, text, table)


def _share_cell(correct: int, asked: int) -> str:
    if not asked:
        return "<td>-</td>"
    share = correct / asked
    grade = "high" if share >= 0.85 else "middle" if share >= 0.5 else "low"
    return f'<td class="{grade}"><meter min="0" max="{asked}" value="{correct}"></meter>{correct} of {asked}</td>'


def _latency(figures: Figures) -> str:
    rows = []
    for at, tier in enumerate(figures.tiers):
        for name, spread in (("first token", tier.first_token), ("whole answer", tier.total)):
            if spread is not None:
                text = f"{_seconds(spread.median)}, 95%: {_seconds(spread.p95)}"
                rows.append(Range(f"{tier.tier}, {name}", spread.median, spread.p95, text, _style(at)))
    if not rows:
        return ""
    table = _table(
        ("tier", "tokens/s of one answer", "tokens per answer", "failed requests"),
        [
            (tier.tier, _number(tier.tokens_per_s, 1), _number(tier.tokens_out, 0), str(tier.failed))
            for tier in figures.tiers
        ],
    )
    headline = "How long the questions take"
    text = "The dot is the median, the line goes to the 95th percentile. Up to four questions run at a time."
    return _section(headline, text, ranges(rows, headline, "s") + table)


def _load(figures: Figures) -> str:
    if not figures.loads:
        return ""
    levels = sorted({load.concurrency for load in figures.loads})
    found = {(load.tier, load.concurrency): load for load in figures.loads}
    tiers = [tier.tier for tier in figures.tiers if any(load.tier == tier.tier for load in figures.loads)]
    styles = {tier.tier: _style(at) for at, tier in enumerate(figures.tiers)}
    positions = [f"{level} at a time" for level in levels]

    def series(value: str) -> list[Line]:
        return [
            Line(tier, [_value(found.get((tier, level)), value) for level in levels], styles[tier]) for tier in tiers
        ]

    throughput = lines(positions, series("all_tokens_per_s"), "Tokens per second of all answers together", "tokens/s")
    waiting = lines(positions, series("first_token"), "Median time to the first token", "s")
    rows = [
        (
            load.tier,
            str(load.concurrency),
            str(load.requests),
            str(load.failed),
            _spread(load.first_token),
            _spread(load.total),
            _number(load.tokens_per_s, 1),
            _number(load.all_tokens_per_s, 1),
        )
        for load in figures.loads
    ]
    head = (
        "tier",
        "at a time",
        "requests",
        "failed",
        "first token, 95%",
        "whole answer, 95%",
        "tokens/s each",
        "together",
    )
    charts = (
        f"<h3>Tokens per second, all answers together</h3>{throughput}<h3>Time to the first token, median</h3>{waiting}"
    )
    text = (
        "Requests with long answers of equal length. More requests at a time give more tokens in all, until they wait."
    )
    return _section("What happens with 1, 4 and 16 requests at a time", text, charts + _table(head, rows))


def _value(load: Any, name: str) -> float | None:
    found = None if load is None else getattr(load, name)
    return found if found is None or isinstance(found, float) else float(found.median)


def _cold(figures: Figures) -> str:
    rows = [
        Bar(each.model, each.total_s, _cold_text(each.total_s, each.first_token_s, each.node), "s1")
        for each in figures.cold
        if each.reason is None or each.first_token_s is not None
    ]
    failed = [
        f"<p>{escape(each.model)}: {escape(each.reason or '')}</p>"
        for each in figures.cold
        if each.first_token_s is None
    ]
    if not rows and not failed:
        return ""
    text = "One request to a model that was not loaded: the load, and the answer. Other requests ran at the same time."
    return _section("A cold start", text, (bars(rows, "Cold starts") if rows else "") + "".join(failed))


def _cold_text(total_s: float, first_token_s: float | None, node: str | None) -> str:
    first = "" if first_token_s is None else f", first token {_seconds(first_token_s)}"
    return f"{_seconds(total_s)}{first}" + (f", {node}" if node else "")


def _cost(figures: Figures) -> str:
    if all(tier.usd_per_1000 is None for tier in figures.tiers):
        return _section("What it costs", "No prices are known: set `cost.input` and `cost.output` in models.toml.", "")
    rows = [
        Bar(tier.tier, tier.usd_per_1000, f"{tier.usd_per_1000:.4g} USD", _style(at))
        for at, tier in enumerate(figures.tiers)
        if tier.usd_per_1000 is not None
    ]
    text = "1,000 questions like these, by the tokens that the engines reported and the prices in models.toml."
    return _section("What 1,000 questions cost", text, bars(rows, "Cost of 1,000 questions"))


def _wrong_answers(figures: Figures, samples: Sequence[Sample], about: About) -> str:
    """Grouped by question: one line for each question that some tier got wrong."""
    wrong = [
        sample
        for sample in samples
        if sample.verdict != "correct" and not (figures.simulated and sample.verdict == "wrong answer")
    ]
    if not wrong:
        return ""
    grouped: dict[tuple[str, str, str], list[Sample]] = {}
    for sample in wrong:
        grouped.setdefault((sample.kind, sample.question, sample.reason or ""), []).append(sample)
    rows = [
        (
            f"{question} ({kind})",
            about.expected.get(question, ""),
            ", ".join(dict.fromkeys(sample.tier for sample in group))
            + (f" ({len(group)} times)" if len(group) > 1 else ""),
            f"{group[0].verdict}: {reason}",
            _shortened(group[0]),
        )
        for (kind, question, reason), group in list(grouped.items())[:WRONG_SHOWN]
    ]
    table = _table(("question", "right", "tiers", "verdict", "answer"), rows)
    title = f"{len(wrong)} answers that are not correct"
    return f"<section><details><summary>{title}</summary>{table}</details></section>"


def _shortened(sample: Sample) -> str:
    called = "; ".join(f"{name} {arguments}" for name, arguments in sample.calls)
    return (called or sample.text)[:160]


def _method(about: About) -> str:
    items = (
        "Times are measured by the client, over the network to the gateway, from sending a request.",
        "The first token is the first generated delta: text, reasoning or a tool call. A role chunk is none.",
        "Tokens/s of one answer: the tokens after the first, over the time from the first to the last.",
        "The 95th percentile of fewer than 20 values is the largest of them.",
        "Long contexts begin with another line in each run, so that no prefix cache of an earlier run helps.",
        f"Gateway: {about.gateway}. Every request is in samples.jsonl beside this file.",
    )
    return _section("How to read this", "", "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>")


# Parts ................................................................................................................


def _section(headline: str, text: str, body: str) -> str:
    paragraph = f"<p>{escape(text)}</p>" if text else ""
    return f"<section><h2>{escape(headline)}</h2>{paragraph}{body}</section>"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    heads = "".join(f"<th>{escape(name)}</th>" for name in head)
    return f'<div class="wide"><table><tr>{heads}</tr>{body}</table></div>'


def _style(at: int) -> str:
    return f"s{at % 4 + 1}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.1f} s"


def _spread(spread: Any) -> str:
    return "-" if spread is None else f"{_seconds(spread.median)}, {_seconds(spread.p95)}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
