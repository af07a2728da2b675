"""The bench reads an answer as it arrives. Clock and connection are fakes."""

import json

import httpx
import pytest

from gateway.cli.bench.chat_client import Answer, ask
from gateway.cli.bench.questions import PROBE

SMALL = "Qwen/Qwen3-1.7B"


class Clock:
    """`time.perf_counter`, moved by the fake connection."""

    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("gateway.cli.bench.chat_client.time.perf_counter", clock)
    return clock


class Paced(httpx.AsyncByteStream):
    """Yields each piece at its time."""

    def __init__(self, clock, pieces):
        self.clock, self.pieces = clock, iter(pieces)

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            self.clock.now, piece = next(self.pieces)
        except StopIteration:
            raise StopAsyncIteration from None
        return piece


def event(choice=None, **fields):
    body = {"model": SMALL, "choices": [] if choice is None else [choice], **fields}
    return b"data: " + json.dumps(body).encode() + b"\n\n"


STREAM = [
    (0.1, event({"delta": {"role": "assistant", "content": ""}})),
    (1.0, b": keep-alive\n\n"),
    (2.0, event({"delta": {"reasoning_content": "hm"}})),
    (3.0, event({"delta": {"content": "<think>no</think>Tbilisi"}})[:20]),
    (3.5, event({"delta": {"content": "<think>no</think>Tbilisi"}})[20:]),
    (4.0, event({"delta": {}, "finish_reason": "stop"})),
    (4.25, event(usage={"prompt_tokens": 20, "completion_tokens": 2})),
    (4.5, b"data: [DONE]\n\n"),
]


async def answer_with(clock, pieces, *, status=200, content_type="text/event-stream"):
    def respond(_):
        headers = {"content-type": content_type, "x-cortex-model": SMALL, "x-cortex-node": "beast"}
        return httpx.Response(status, headers=headers, stream=Paced(clock, pieces))

    about = {"tier": "small", "target": SMALL, "phase": "probe", "question": PROBE, "concurrency": 1, "run_began": 0}
    async with httpx.AsyncClient(transport=httpx.MockTransport(respond)) as client:
        return await ask(client, "http://gateway", {}, **about)


async def test_stream_is_read_as_it_arrives(clock):
    """First token at the first generated delta, reasoning included; not the role chunk, a comment, or a full buffer."""
    sample, reply = await answer_with(clock, STREAM)

    assert (sample.first_token_s, sample.decode_s, sample.total_s) == (2.0, 1.5, 4.5)
    assert (sample.tokens_in, sample.tokens_out, sample.body_model, sample.node) == (20, 2, SMALL, "beast")
    assert (sample.verdict, sample.reason, sample.simulated) == ("correct", None, False)
    assert reply.text == "Tbilisi", "reasoning inside the text is no part of the answer"


async def test_tool_calls_are_put_together(clock):
    """Names and arguments come in pieces; arguments that are no JSON are empty."""

    def call(index, **function):
        return event({"delta": {"tool_calls": [{"index": index, "function": function}]}})

    pieces = [
        (1.0, call(0, name="set_timer", arguments="")),
        (1.1, call(0, arguments='{"min')),
        (1.2, call(0, arguments='utes": 15}')),
        (1.3, call(1, name="play_music", arguments="{oops")),
        (2.0, event({"delta": {}, "finish_reason": "tool_calls"}, system_fingerprint="simulated")),
    ]
    sample, reply = await answer_with(clock, pieces)

    assert reply.calls == (("set_timer", {"minutes": 15}), ("play_music", {}))
    assert (sample.first_token_s, sample.simulated) == (1.0, True)


@pytest.mark.parametrize(
    ("pieces", "error"),
    [
        (STREAM[:5], "ended without a finish_reason"),
        ([*STREAM[:3], (5.0, b'data: {"error":{"message":"node died"}}\n\n')], "node died"),
        ([(0.1, b"data: nonsense\n\n")], "not OpenAI's"),
        ([(0.1, b"data: []\n\n")], "not OpenAI's"),
    ],
)
async def test_stream_cut_or_broken_is_a_failure(clock, pieces, error):
    """Half an answer is a failure, however correct its beginning."""
    sample, _ = await answer_with(clock, pieces)
    assert sample.verdict == "failed"
    assert error in sample.reason


async def test_refusal_is_a_failure_with_its_text(clock):
    """Status and the body's beginning, for the report."""
    sample, _ = await answer_with(clock, [(0.5, b'{"error":"full"}')], status=503, content_type="application/json")
    assert (sample.verdict, sample.reason) == ("failed", 'status 503: {"error":"full"}')


def test_usage_of_zero_tokens_is_known():
    """0 is a number, not a missing value."""
    answer = Answer()
    answer.read_event(b'{"model":"m","choices":[],"usage":{"completion_tokens":0}}', 1.0)
    assert answer.tokens_out == 0
