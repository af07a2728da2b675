"""How a request's time was spent, for its client: `Server-Timing` on heads, and a comment at the end of streams."""

import json
import re

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, ROLE, chunked, delta, read_request, with_length
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from gateway.config.settings import DeadlineSettings, Settings
from gateway.http import sse
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy.response.server_timing import LastComment, server_timing
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.request_log import RequestLog
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

JSON = b'{"object":"chat.completion","choices":[]}'
PLEASE = ("x-cortex-timing: 1",)
COMMENT = b": cortex-timing {}\n\n"
# https://www.w3.org/TR/server-timing/#the-server-timing-header-field; tokens are RFC 9110, 5.6.2.
METRIC = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+;dur=\d+\.\d")


@pytest.fixture
def gateway(nursery):
    """A gateway in front of one neuron without faults."""
    return InMemoryGateway(nursery, {"beast": neuron("beast", [24576], [SMALL])})


def metrics_of(answer):
    """The metrics of the header, in order."""
    timing = answer.headers["server-timing"].split(", ")
    assert all(METRIC.fullmatch(one) for one in timing)
    return {name: float(duration) for name, duration in (one.split(";dur=") for one in timing)}


def comments(body):
    return re.findall(rb"(?:\A|(?<=\n\n)): cortex-timing (.*)\n\n", body)


# Server-Timing...


async def test_header_has_the_duration_of_each_phase(autojump_clock):
    """In ms, in the order they began; a phase that was entered twice is summed; `idle` has not begun."""
    record = RequestLog(Metrics(), log_requests=False).open("id", "/")
    assert server_timing(record, 0) is None

    record.phases = phases = PhaseDeadlines(DeadlineSettings())
    for phase in ("load", "connect", "first_byte", "connect", "first_byte", "idle"):
        phases.enter(phase)
        await trio.sleep(0.25)

    assert server_timing(record, trio.current_time()) == (
        b"total;dur=1500.0, load;dur=250.0, connect;dur=500.0, first_byte;dur=500.0"
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_response_has_the_header(autojump_clock, gateway, stream):
    """Measured until the first token, or until the first byte if it is not a stream."""
    answer = await gateway.client().ask(stream=stream)
    timing = metrics_of(answer)
    first_ms = round(answer.arrivals[0][0] * 1000, 1)

    assert timing == {"total": first_ms, "connect": 0.0, "first_byte": first_ms}


async def test_error_of_a_routed_request_has_the_header(autojump_clock, gateway):
    """Above all a 504."""
    gateway.neurons["beast"].faults.add(faults.Hang())
    answer = await gateway.client().ask(headers=("x-request-deadline-ms: 1500",))

    assert answer.status == 504
    assert metrics_of(answer) == {"total": 1500.0, "connect": 0.0, "first_byte": 1500.0}


async def test_error_before_routing_has_no_header(autojump_clock, gateway):
    """The request has not waited for anything."""
    assert "server-timing" not in (await gateway.client().ask(b"{}")).headers


async def test_early_head_has_the_duration_of_the_load_so_far(autojump_clock):
    """Five seconds into the load."""
    model = a_sim_model("m", load_s=60)
    async with a_world(a_sim("beast", model), profiles=(profile_of(model),)) as world:
        answer = await world.ask("m", stream=True)

        assert metrics_of(answer) == {"total": 5000.0, "load": 5000.0}


async def test_neurons_server_timing_is_passed_on_as_well(autojump_clock, nursery):
    """The header is a list (RFC 9110, 5.6.1): every hop may add to it."""

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(with_length(JSON, more="server-timing: prefill;dur=7.0\r\n"))

    gateway = InMemoryGateway(nursery, {"beast": peer})
    client = gateway.client()
    await client.send()
    head = await client._until(b"\r\n\r\n")

    assert head.count(b"server-timing: ") == 2
    assert b"server-timing: prefill;dur=7.0\r\n" in head


# The comment, byte by byte...


STREAMS = {
    "chat": (delta("a") + delta("b"), DONE),
    "no space": (b'data:{"a":1}\n\n', b"data:[DONE]\n\n"),
    "crlf": (b': hello\r\n\r\ndata: {"a":1}\r\n\r\n', b"data: [DONE]\r\n\r\n"),
    "cr": (b"data: 1\r\r", b"data: [DONE]\r\r"),
    "messages": (b'event: ping\ndata: {"type":"ping"}\n\n', b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
    "responses": (b'event: response.created\ndata: {"a":1}\n\n', b'event: response.completed\ndata: {"b":2}\n\n'),
    "fields before": (b"data: 1\n\n", b": bye\nid: 7\ndata: [DONE]\n\n"),
    "nothing else": (b"", DONE),
    "quoted": (b'data: {"a":"data: [DONE]"}\n\ndata: 1\ndata: x [DONE]\n\n', DONE),
    "without an end": (b"data: 1\n\n: bye\n\n", b""),
}


def passed(*chunks):
    note = LastComment(lambda: b"{}")
    return b"".join(map(note.feed, chunks)) + note.finish()


@pytest.mark.parametrize("name", STREAMS)
def test_comment_is_before_the_terminator_at_every_split(name):
    """It is complete, between two events, and no other byte changes."""
    before, terminator = STREAMS[name]
    stream = before + terminator
    expected = before + COMMENT + terminator

    assert passed(stream) == expected
    assert passed(*(stream[at : at + 1] for at in range(len(stream)))) == expected
    for at in range(len(stream)):
        for then in range(at, len(stream)):
            assert passed(stream[:at], stream[at:then], stream[then:]) == expected


def test_events_are_passed_on_as_soon_as_they_are_complete():
    """No event waits for the next one."""
    note = LastComment(lambda: b"{}")

    assert note.feed(delta("a") + delta("b")[:-1]) == delta("a")
    assert note.feed(b"\n" + delta("c")) == delta("b") + delta("c")


def test_last_event_without_its_blank_line_is_ended_before_the_comment():
    """Some engines omit the last blank line; the comment must not become part of that event."""
    assert passed(b"data: 1\n\ndata: 2") == b"data: 1\n\ndata: 2\n\n" + COMMENT
    assert passed(b"data: 1\n\ndata: [DONE]") == b"data: 1\n\n" + COMMENT + b"data: [DONE]"


def test_incomplete_event_is_dropped_before_an_error():
    """It will never be complete."""
    note = LastComment(lambda: b"{}")

    assert note.feed(b"data: 1\n\ndata: 2") == b"data: 1\n\n"
    assert note.fail(b"data: error\n\n") == COMMENT + b"data: error\n\n"
    assert note.finish(b"data: error\n\n") == b"data: error\n\n"


def test_event_beyond_the_limit_passes_and_there_is_no_comment():
    """A neuron cannot make the buffer grow without limit."""
    note = LastComment(lambda: b"{}")
    monster = b"data: " + b"x" * sse.EVENT_LIMIT_BYTES

    assert note.feed(b"data: 1\n\n") + note.feed(monster) + note.finish(b"y\n\n" + DONE) == (
        b"data: 1\n\n" + monster + b"y\n\n" + DONE
    )


# Through the gateway...


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages"])
async def test_stream_has_the_comment_only_on_request(autojump_clock, gateway, path):
    """Before the terminator; the events are the same with and without it."""
    question = {"prompt": "hi"} if path == "/v1/completions" else {}
    plain = await gateway.client().ask(path=path, stream=True, max_tokens=9, **question)
    begun = trio.current_time()
    timed = await gateway.client().ask(path=path, stream=True, max_tokens=9, headers=PLEASE, **question)

    assert comments(plain.body) == []
    [timing] = map(json.loads, comments(timed.body))
    assert timing["total_ms"] == pytest.approx((trio.current_time() - begun) * 1000, abs=0.01)
    assert timing["first_token_ms"] < timing["total_ms"]
    assert list(timing["phases_ms"]) == ["first_byte", "idle"]  # an idle connection was used
    assert timing["retries"] == 0
    without = re.sub(rb": cortex-timing .*\n\n", b"", timed.body)
    assert len(sse.Reader().feed(without)) == len(sse.Reader().feed(plain.body))
    assert re.search(rb"\n\n: cortex-timing [^\n]*\n\n(data: \[DONE\]|event: message_stop\n[^\n]*)\n\n\Z", timed.body)
    await gateway.idle()


@pytest.mark.parametrize("value", ["0", "", "true", "11"])
async def test_only_the_value_1_requests_the_comment(autojump_clock, gateway, value):
    """Other values are reserved."""
    answer = await gateway.client().ask(stream=True, headers=(f"x-cortex-timing: {value}",))

    assert comments(answer.body) == []


async def test_body_that_is_not_a_stream_has_no_comment(autojump_clock, gateway):
    """JSON has no comments: neither an answer nor an error to a streaming request."""
    assert json.loads((await gateway.client().ask(headers=PLEASE)).body)["object"] == "chat.completion"
    gateway.neurons["beast"].faults.add(faults.HttpError(status=400))
    assert "error" in json.loads((await gateway.client().ask(stream=True, headers=PLEASE)).body)


async def test_stream_that_breaks_off_has_the_comment_before_its_error(autojump_clock, gateway):
    """It tells which phase took so long."""
    gateway.neurons["beast"].faults.add(faults.Drop(after=3))
    answer = await gateway.client().ask(stream=True, headers=PLEASE)

    [timing] = map(json.loads, comments(answer.body))
    assert timing["phases_ms"]["first_byte"] > 0
    assert re.search(rb'\n\n: cortex-timing [^\n]*\n\ndata: \{"error"[^\n]*\n\n\Z', answer.body)


async def test_keep_alives_go_on_while_an_event_is_incomplete(autojump_clock, nursery):
    """The incomplete event has not been sent, so a keep-alive may come before it."""

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(chunked(ROLE, delta("x"), delta("y")[:9], end=b""))
        await trio.sleep(3.5)
        rest = delta("y")[9:] + DONE
        await stream.send_all(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest))

    gateway = InMemoryGateway(nursery, {"beast": peer}, Settings())
    answer = await gateway.client().ask(stream=True, headers=PLEASE)

    assert answer.body.count(b": keep-alive\n\n") == 3
    assert answer.events[1:] == [delta("x").decode()[6:-2], delta("y").decode()[6:-2], "[DONE]"]
    assert len(comments(answer.body)) == 1
