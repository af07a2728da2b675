"""A stream through the pump is the stream through its own task: same bytes, same times, same record.

Random schedules of pieces, pauses, clients that stop reading or leave, neurons that break off, and operators who cut
requests are played twice, with the pump and without.
"""

import itertools
import json
import re
from contextlib import suppress
from functools import partial

import pytest
import trio
from fakes.fleets import assert_idle
from fakes.scripted import DONE, ROLE, delta
from fakes.socket_pairs import SocketPairGateway
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from catalogue.models import Alias, Target
from gateway.config.settings import Settings, StreamingSettings
from gateway.errors import ShuttingDown
from gateway.http.epoll.pump import Pump

FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":4}}\n\n'
PLAIN = b'data: {"id":"1","model":"m","choices":[{"index":0,"delta":{"content":"%b"},"finish_reason":null}]}\n\n'
BIG = PLAIN % (b"x" * 300_000)  # more than a socket pair takes
ERROR = b'data: {"error":{"message":"out of memory","code":500}}\n\n'
EVENTS = [PLAIN % b"a", PLAIN % b"b", PLAIN % b"c", delta("d"), b": comment\n\n", USAGE, b"data: not JSON\n\n", BIG]
ENDS = {"done": FINISH + DONE, "finish": FINISH, "nothing": b"", "half": PLAIN[:40], "error": ERROR}
PATHS = ("/v1/chat/completions", "/v1/messages", "/v1/responses")
QUESTIONS = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}]},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 99},
    "/v1/responses": {"input": "hi"},
}


SETTINGS = Settings(streaming=StreamingSettings(keepalive_seconds=0.97))  # never due at the same time as a deadline


class Script:
    """What one neuron sends, in pieces, and what else happens to the stream after each of them."""

    def __init__(self, path, version, pieces, disturbances, *, closes):
        self.path, self.version, self.pieces, self.disturbances = path, version, pieces, disturbances
        self.closes = closes

    def __repr__(self):
        """For Hypothesis, which shows the scripts that fail."""
        pieces = [piece.replace(b"x" * 100, b"") for piece in self.pieces]
        return f"Script({self.path!r}, {self.version!r}, {pieces!r}, {self.disturbances!r}, closes={self.closes})"

    @property
    def is_big(self):
        """Whether sockets do not take it at once: then it depends on the kernel how much is read at a time."""
        return sum(map(len, self.pieces)) > len(BIG)


DISTURBANCES = ["pause", "long pause", "stop reading", "read on", "leave", "break", "cut", "read on", "pause"]


@st.composite
def scripts(draw):
    events = draw(st.lists(st.sampled_from(EVENTS), max_size=12))
    body = ROLE + PLAIN % b"first" + b"".join(events) + ENDS[draw(st.sampled_from(list(ENDS)))]
    framing = draw(st.sampled_from(["chunked", "chunked", "length", "close"]))
    wire = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n" + framed(body, framing, draw)
    cuts = draw(st.lists(st.integers(0, len(wire)), max_size=12))
    pieces = [wire[start:end] for start, end in itertools.pairwise([0, *sorted(cuts), len(wire)])]
    kinds = st.dictionaries(st.integers(0, len(pieces)), st.sampled_from(DISTURBANCES), max_size=4)
    version = draw(st.sampled_from(["1.1", "1.1", "1.0"]))
    closes = framing == "close" or draw(st.booleans())
    return Script(draw(st.sampled_from(PATHS)), version, pieces, draw(kinds), closes=closes)


def framed(body, framing, draw):
    if framing == "length":
        return b"content-length: %d\r\n\r\n" % len(body) + body
    if framing == "close":
        return b"connection: close\r\n\r\n" + body
    ends = sorted(draw(st.lists(st.integers(1, len(body)), max_size=6)))
    chunks = [body[start:end] for start, end in itertools.pairwise([0, *ends, len(body)]) if start < end]
    return (
        b"transfer-encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
    )


class Player:
    """One client, and the neuron that answers it."""

    def __init__(self, script, number, gateway, nursery):
        self.script, self.number, self.gateway, self.nursery = script, number, gateway, nursery
        self.client = gateway.connect()
        self.received = b""
        self.reads = True
        self.neuron = None
        self.pieces, self.to_send = trio.open_memory_channel[bytes](1000)

    async def begin(self):
        question = json.dumps({"model": "helexa/small", "stream": True, **QUESTIONS[self.script.path]}).encode()
        head = f"POST {self.script.path} HTTP/{self.script.version}\r\nhost: a\r\nx-request-id: {self.number}\r\n"
        self.client.send(f"{head}content-length: {len(question)}\r\n\r\n".encode() + question)
        await wait_all_tasks_blocked()
        self.neuron = self.gateway.neuron_sides[-1]
        self.nursery.start_soon(self._send_pieces)

    async def _send_pieces(self):
        await self.neuron.receive_some(65536)
        try:
            async for piece in self.to_send:
                await self.neuron.send_all(piece)
            if self.script.closes:
                await self.neuron.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the gateway has closed it, or this script has

    async def step(self, index):
        """One piece, then what happens after it. Everything that follows from it has happened when this returns."""
        if index < len(self.script.pieces):
            self.pieces.send_nowait(self.script.pieces[index])
        elif index == len(self.script.pieces):
            self.pieces.close()
        await self.settle()
        await self.disturb(self.script.disturbances.get(index))
        await self.settle()

    async def disturb(self, kind):
        if kind == "pause":
            await trio.sleep(1.5)
        elif kind == "long pause":
            await trio.sleep(400)
        elif kind in {"stop reading", "read on"}:
            self.reads = kind == "read on"
        elif kind == "leave":
            self.client.close()
        elif kind == "break":
            self.neuron.socket.close()
        elif kind == "cut":
            for record in list(self.gateway.request_log.live.values()):
                if record.request_id == str(self.number):
                    record.cancel(ShuttingDown("an operator cuts it"))

    async def settle(self):
        """Read what the client reads, until nothing more comes."""
        before = None
        while before != len(self.received):
            before = len(self.received)
            await wait_all_tasks_blocked()
            if self.reads and self.client.fileno() >= 0:
                with suppress(BlockingIOError, ConnectionResetError):
                    self.received += self.client.recv(2**20)


async def played(scripts_, pump, alias):
    """What every client received, and every record, the times in it included."""
    async with trio.open_nursery() as nursery:
        if pump is not None:
            await nursery.start(pump.run)
        gateway = SocketPairGateway(nursery, pump, settings=SETTINGS, alias=alias)
        await nursery.start(gateway.server.watch_connections)
        players = [Player(script, number, gateway, nursery) for number, script in enumerate(scripts_)]
        for player in players:
            await player.begin()
        for index in range(max(len(player.script.pieces) for player in players) + 1):
            for player in players:
                await player.step(index)
        for player in players:
            player.reads = True
            await player.settle()
        await trio.sleep(1000)  # past every deadline
        for player in players:
            await player.settle()
        await trio.sleep(1000)
        assert pump is None or pump.carried == 0
        assert gateway.request_log.live == {}
        assert gateway.upstream.in_use == 0
        assert_idle(gateway.fleet)
        results = [(player.received, summary(gateway, player.number)) for player in players]
        gateway.close()
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    return results


def summary(gateway, number):
    (record,) = gateway.request_log.recent.find(str(number))
    answer = record.answer
    return {
        "outcome": (record.outcome, record.status, record.upstream_status, record.error_summary, record.stream),
        "bytes": (record.bytes_in, record.bytes_out),
        "answer": (answer.usage, answer.is_estimated, answer.first_token_at),
        "times": (record.started_at, record.sent_first_at, record.ended_at, record.phases_ms),
        "attempts": [(each.result, each.ended_at, each.error) for each in record.routing.attempts],
    }


CHANGING = re.compile(rb'(?:date|server-timing): [^\r]*|(?:msg|resp|rs|fc)_[0-9a-f]+|"created_at":[0-9.]+')


def comparable(response):
    """Without what differs between any two answers: real times, and ids made by chance."""
    return CHANGING.sub(b"", response)


def unframed(response):
    """A response without the sizes of its chunks."""
    return re.sub(rb"\r\n[0-9a-f]+\r\n", b"", response)


ALIASES = {
    "plain": Alias.plain("helexa/small", "Qwen/Qwen3-1.7B"),
    "echo": Alias("helexa/small", (Target("Qwen/Qwen3-1.7B"),), echo="alias"),
}


@pytest.mark.parametrize("name", ALIASES)
@given(scripts_=st.lists(scripts(), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None)
def test_pump_changes_nothing(name, scripts_):
    play = partial(played, scripts_)
    through_pump = trio.run(play, Pump(), ALIASES[name], clock=MockClock(autojump_threshold=0))
    through_tasks = trio.run(play, None, ALIASES[name], clock=MockClock(autojump_threshold=0))

    for script, (pumped, record), (expected, other) in zip(scripts_, through_pump, through_tasks, strict=True):
        if not script.is_big:
            assert record == other
            assert comparable(pumped) == comparable(expected)
        elif record["outcome"][0] == "ok":
            assert record == other
            assert unframed(comparable(pumped)) == unframed(comparable(expected))
        else:
            assert record["outcome"] == other["outcome"]
