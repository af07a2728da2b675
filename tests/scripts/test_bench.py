"""The bench's arithmetic and verdicts, and that it reads an answer as it arrives. Clock and connection are fakes."""

import io
import json
import xml.etree.ElementTree as ET

import httpx
import pytest
from bench import Answer, Bench, Question, UnavailableError, ask, run
from bench_report import CASES, Sample, exit_code, judge, plot, ratio, spread, summarise, tables, tokens_per_s
from rich.console import Console

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"
KNOWN = {SMALL, LARGE, "helexa/small", "helexa/large"}


def sample(**changed):
    listed_in_error = {
        "subject": "helexa/small",
        "target": SMALL,
        "case": "short",
        "via": "gateway",
        "phase": "measured",
        "round": 1,
        "total_s": 2.5,
        "header_model": SMALL,
        "body_model": SMALL,
        "text": "Tbilisi",
    }
    return Sample(**(listed_in_error | changed))


# Verdicts.


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, "correct"),
        ({"text": "It is TBILISI."}, "correct"),
        ({"text": "Atlanta"}, "wrong answer"),
        ({"error": "status 503"}, "unavailable"),
        ({"header_model": LARGE}, "wrong model"),
        ({"header_model": None, "body_model": LARGE}, "wrong model"),
        (
            {"header_model": None, "body_model": f"{SMALL}@main"},
            "correct",
        ),  # the response began while the model was loading
        ({"header_model": None, "body_model": None}, "correct"),
        ({"body_model": LARGE}, "wrong model"),  # the gateway's header and the neuron's body differ
        ({"body_model": f"{SMALL}@main"}, "correct"),  # transformers serve
        ({"header_model": LARGE, "text": "Atlanta"}, "wrong model"),
        ({"via": "neuron", "header_model": None}, "correct"),
        ({"via": "neuron", "header_model": None, "body_model": "gguf"}, "correct"),
    ],
)
def test_verdict_of_a_sample(changed, verdict):
    """The model that answered counts before the text; an engine may use any name except another model's."""
    assert verdict == judge(sample(**changed), KNOWN)


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        ([], 0),
        ([{"text": "Atlanta"}], 1),
        ([{"error": "gone"}], 2),
        ([{"header_model": LARGE}], 3),
        ([{"text": "Atlanta"}, {"error": "gone"}], 2),
        ([{"text": "Atlanta"}, {"error": "gone"}, {"header_model": LARGE}], 3),
        ([{"phase": "warm-up", "error": "gone"}], 2),
        ([{"via": "neuron", "error": "gone"}], 0),
    ],
)
def test_exit_code_is_the_most_severe(bad, code):
    """One bad sample among good ones decides; a neuron that does not answer directly is not the gateway's fault."""
    assert code == exit_code([sample(), *(sample(**changed) for changed in bad)], KNOWN)


def test_exit_code_without_samples_is_unavailable():
    """Without requests nothing is proven."""
    assert exit_code([], KNOWN) == 2


# Statistics.


def test_spread_is_median_and_nearest_rank():
    """The p95 is a measured value: of 20 the 19th, of few the largest."""
    twenty = spread([float(value) for value in range(20, 0, -1)])

    assert (twenty.median, twenty.p95) == (10.5, 19.0)
    assert (spread([9.0, 1.0, 3.0]).median, spread([9.0, 1.0, 3.0]).p95) == (3.0, 9.0)
    assert spread([]) is None


def test_tokens_per_s_counts_both_sides_from_the_first_token():
    """11 tokens are 10 steps; in 0.5 s that is 20 a second, not 22."""
    assert tokens_per_s(sample(tokens_out=11, decode_s=0.5)) == 20.0


@pytest.mark.parametrize(
    "changed", [{}, {"tokens_out": 11}, {"tokens_out": 2, "decode_s": 0.1}, {"tokens_out": 99, "decode_s": 0.0}]
)
def test_tokens_per_s_of_too_little_is_unknown(changed):
    """Two tokens in two reads show no speed."""
    assert tokens_per_s(sample(**changed)) is None


def test_summary_pairs_gateway_with_neuron_by_round():
    """A machine that slows down between rounds slows both halves of a pair; the overhead is the same 0.25 s."""
    pairs = [
        sample(round=at, via=via, total_s=neuron_s + (0.25 if via == "gateway" else 0))
        for at, neuron_s in enumerate((1.0, 2.0, 8.0))
        for via in ("gateway", "neuron")
    ]

    (row,) = summarise(pairs, KNOWN)

    assert (row.n, row.correct, row.total.median, row.total.p95, row.overhead_total_s) == (3, 3, 2.25, 8.25, 0.25)


def test_summary_leaves_failures_and_warm_up_out_of_times():
    """A refusal in 1 ms is not a fast answer, nor a cold start a slow one; the refusal still counts as a request."""
    samples = [
        sample(total_s=2.0),
        sample(total_s=0.001, error="status 503"),
        sample(total_s=30.0, phase="cold"),
        sample(total_s=9.0, phase="warm-up"),
    ]

    (row,) = summarise(samples, KNOWN)

    assert (row.n, row.correct, row.total.median, row.total.p95, row.overhead_total_s) == (2, 1, 2.0, 2.0, None)


def test_report_has_ratio_reference_cold_starts_and_failures():
    """Everything that a reader looks for is there, in words."""
    samples = [
        sample(total_s=2.5),
        sample(subject="helexa/large", target=LARGE, header_model=LARGE, body_model=LARGE, total_s=6.7),
        sample(subject="cold/one", target="cold/one", header_model="cold/one", phase="cold", total_s=42.125),
        sample(text="Atlanta [/b]", round=2),
    ]
    shown = io.StringIO()
    console = Console(width=200, markup=False, file=shown)

    console.print(*tables(samples, ["helexa/small", "helexa/large"], KNOWN))

    shown = shown.getvalue()
    assert "helexa/large takes 2.68 times as long as helexa/small (reference: 2.5 s, 6.7 s, ratio 2.68)" in shown
    assert "42.125" in shown
    assert "Atlanta [/b]" in shown


def test_ratio_without_measurements_is_unknown():
    """No number rather than a wrong one."""
    assert ratio(summarise([sample()], KNOWN), "helexa/small", "helexa/large") is None


def test_plot_is_one_page_with_a_mark_for_each_time():
    """Well-formed for any model name; a stream has two marks, the first token and the end."""
    page = plot([sample(subject="<a&b>"), sample(first_token_s=1.0, case="short stream"), sample(error="gone")])

    svg = ET.fromstring(page[page.index("<svg") : page.index("</svg>") + len("</svg>")])  # noqa: S314 - a trusted page
    assert len(svg.findall("circle")) == 3
    assert "<a&b>, short" in [text.text for text in svg.findall("text")]


def test_plot_without_samples_is_a_page():
    """An interrupted run still ends with its report."""
    assert "</svg>" in plot([])


# Reading.


class Clock:
    """`time.perf_counter`, moved by the fake connection."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("bench.time.perf_counter", clock)
    return clock


class Paced(httpx.SyncByteStream):
    """Yields each piece at its time."""

    def __init__(self, clock, pieces):
        self.clock, self.pieces = clock, pieces

    def __iter__(self):
        for at_s, piece in self.pieces:
            self.clock.now = at_s
            yield piece


def event(choice=None, **fields):
    body = {"model": SMALL, "choices": [] if choice is None else [choice], **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


STREAM = [
    (0.1, event({"delta": {"role": "assistant", "content": ""}})),
    (1.0, b": keep-alive\n\n"),
    (2.0, event({"delta": {"reasoning_content": "hm"}})),
    (3.0, event({"delta": {"content": "Tbilisi"}})[:20]),
    (3.5, event({"delta": {"content": "Tbilisi"}})[20:]),
    (4.0, event({"delta": {}, "finish_reason": "stop"})),
    (4.25, event(usage={"completion_tokens": 2})),
    (4.5, b"data: [DONE]\n\n"),
]


def answer_with(clock, pieces, *, status=200, content_type="text/event-stream"):
    def respond(_):
        return httpx.Response(status, headers={"content-type": content_type}, stream=Paced(clock, pieces))

    question = Question("helexa/small", SMALL, CASES[1], "measured", 1, "gateway", "http://gateway")
    with httpx.Client(transport=httpx.MockTransport(respond)) as client:
        return ask(client, question)


def test_stream_is_read_as_it_arrives(clock):
    """First token at the first generated delta, reasoning included; not the role chunk, a comment, or a full buffer."""
    answer = answer_with(clock, STREAM)

    assert (answer.first_token_s, answer.decode_s, answer.total_s) == (2.0, 1.5, 4.5)
    assert (answer.text, answer.tokens_out, answer.body_model, answer.error) == ("Tbilisi", 2, SMALL, None)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        (STREAM[:5], "ended without a finish_reason"),
        ([*STREAM[:4], (5.0, b"\n\n" + b'data: {"error":{"message":"node died"}}\n\n')], "not OpenAI's"),
        ([*STREAM[:3], (5.0, b'data: {"error":{"message":"node died"}}\n\n')], "node died"),
        ([(0.1, b"data: nonsense\n\n")], "not OpenAI's"),
        ([(0.1, b"data: []\n\n")], "not OpenAI's"),
    ],
)
def test_stream_cut_or_broken_is_an_error(clock, pieces, error):
    """Half an answer is an error, however correct its beginning."""
    assert error in answer_with(clock, pieces).error


def test_refusal_is_an_error_with_its_text(clock):
    """Status and the body's beginning, for the report."""
    answer = answer_with(clock, [(0.5, b'{"error":"full"}')], status=503, content_type="application/json")

    assert answer.error == 'status 503: {"error":"full"}'


def test_usage_of_zero_tokens_is_known():
    """0 is a number, not a missing value."""
    answer = Answer()

    answer.read_body(b'{"model":"m","choices":[{"message":{"content":null}}],"usage":{"completion_tokens":0}}')

    assert (answer.tokens_out, answer.text) == (0, "")


# A whole run against a gateway that answers at once.


class FakeWire:
    """A gateway and one neuron as an httpx transport."""

    def __init__(self):
        self.requests = []
        self.entries = [
            {"id": SMALL, "loaded": True},
            {"id": LARGE, "loaded": False},
            {"id": "helexa/small", "loaded": True, "alias_of": SMALL},
            {"id": "helexa/large", "loaded": False, "alias_of": LARGE},
        ]

    def __call__(self, request):
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": self.entries})
        if request.url.path.endswith("/endpoint"):
            return httpx.Response(200, json={"url": "http://localhost:13131"})
        requests = json.loads(request.content)
        self.requests.append((request.url.host, requests["model"]))
        target = next(entry.get("alias_of", entry["id"]) for entry in self.entries if entry["id"] == requests["model"])
        body = {"model": target, "choices": [{"message": {"content": "Tbilisi"}, "finish_reason": "stop"}]}
        return httpx.Response(200, headers={"x-cortex-model": target, "x-cortex-node": "beast"}, json=body)


@pytest.fixture
def wire():
    return FakeWire()


@pytest.fixture
def bench(wire):
    with httpx.Client(transport=httpx.MockTransport(wire)) as client:
        yield Bench(client, "http://gateway", {"beast": "http://beast:13131"}, record=lambda _: None)


def test_run_interleaves_and_alternates(bench, wire):
    """Cold start and warm-up once each; then subjects alternate, and so do gateway and neuron in going first."""
    run(bench, ("helexa/small", "helexa/large"), (), [CASES[0]], 2)

    assert [each.phase for each in bench.samples] == ["warm-up", "cold"] + ["measured"] * 8
    assert wire.requests[2:] == [
        ("gateway", "helexa/small"),
        ("beast", SMALL),
        ("gateway", "helexa/large"),
        ("beast", LARGE),
        ("beast", SMALL),
        ("gateway", "helexa/small"),
        ("beast", LARGE),
        ("gateway", "helexa/large"),
    ]
    assert exit_code(bench.samples, bench.models.keys()) == 0


def test_run_requests_cold_models_once(bench, wire):
    """A cold start is measured separately, and does not become a subject."""
    run(bench, ("helexa/small",), (LARGE,), [CASES[0]], 1)

    assert [each for each in wire.requests if each[1] == LARGE] == [("gateway", LARGE)]
    assert bench.samples[0].phase == "cold"


def test_run_unlisted_subject_is_unavailable(bench):
    """The error comes before any measurement, with the listed models."""
    with pytest.raises(UnavailableError, match="does not list helexa/huge; it has"):
        run(bench, ("helexa/huge",), (), [CASES[0]], 1)
