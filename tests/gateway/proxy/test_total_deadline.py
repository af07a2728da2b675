"""A request's total deadline: what a client may ask for, and that it ends the request. In memory, to the second."""

import dataclasses
import json
import random

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import ROLE, chunked, read_request, with_length
from fakes.world import a_sim, a_sim_model, a_world, profile_of
from trio.testing import wait_all_tasks_blocked

from gateway.config.settings import DeadlineSettings, RetrySettings, Settings
from gateway.errors import BadRequest
from gateway.proxy.total_deadline import LONGEST_MS, of_client
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

JSON = b'{"object":"chat.completion","choices":[]}'
HEADER = "x-request-deadline-ms"
ASKED = {"model": "helexa/small", "input": "What is the capital of Georgia?"}
IN_2500_MS = (f"{HEADER}: 2500",)


@pytest.fixture
def before(nursery):
    """Makes a gateway in front of these neurons, used in this order; no retries unless a test asks for them."""

    def make(*peers, attempts=0, **sections):
        settings = dataclasses.replace(Settings(retries=RetrySettings(attempts=attempts)), **sections)
        return InMemoryGateway(nursery, dict(zip(("a", "b"), peers, strict=False)), settings)

    return make


def sending(*pieces):
    """A neuron that sends this much, and then nothing."""

    async def peer(stream):
        await read_request(stream)
        for piece in pieces:
            await stream.send_all(piece)
        await stream.receive_some()

    return peer


# The header...


@pytest.mark.parametrize(
    ("value", "allowed_s"), [("1", 0.001), ("2500", 2.5), ("00002500", 2.5), (str(LONGEST_MS), 86400)]
)
def test_deadline_is_a_whole_number_of_milliseconds(value, allowed_s):
    """From one to a day."""
    assert of_client([(b"accept", b"*/*"), (HEADER.encode(), value.encode())]).allowed_s == allowed_s


@pytest.mark.parametrize(
    "value", ["", "0", "-1", "+5", "1.5", "1e3", "5 5", "1_000", "0x10", "²", "soon", str(LONGEST_MS + 1), "9" * 5000]
)
def test_invalid_deadline_is_refused(value):
    """The error names the header."""
    with pytest.raises(BadRequest, match=HEADER) as refused:
        of_client([(HEADER.encode(), value.encode())])

    assert refused.value.param == HEADER


def test_two_deadlines_are_refused():
    """Two proxies could disagree about which one counts."""
    with pytest.raises(BadRequest, match=HEADER):
        of_client([(HEADER.encode(), b"5"), (HEADER.encode(), b"5")])


def test_no_header_is_no_deadline():
    """A stream may last for ever."""
    assert of_client([(b"x-request-id", b"5")]) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_invalid_deadline_is_a_400_before_any_neuron_is_asked(autojump_clock, before, path):
    """In the error format of the client's dialect."""
    beast = neuron("a", [24576], [SMALL])
    gateway = before(beast)
    answer = await gateway.client().ask(path=path, headers=(f"{HEADER}: soon",), max_tokens=9)

    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert HEADER in answer.error["message"]
    assert list(beast.requests) == []
    await gateway.idle()


async def test_deadline_header_is_not_passed_to_neurons(autojump_clock, before):
    """A neuron sees the connection close."""
    received = []

    async def peer(stream):
        received.append(await read_request(stream))
        await stream.send_all(with_length(JSON))

    answer = await before(peer).client().ask(headers=IN_2500_MS)

    assert answer.status == 200
    assert HEADER.encode() not in received[0].lower()


# When it expires...


@pytest.mark.parametrize(("pieces", "stream"), [((), False), ((), True), ((chunked(ROLE, end=b""),), True)])
async def test_total_deadline_fires_exactly_on_time(autojump_clock, before, pieces, stream):
    """A 504 `total` with the phase it was in and the time of each; it does not count against the neuron."""
    gateway = before(sending(*pieces))
    answer = await gateway.client().ask(stream=stream, headers=IN_2500_MS)

    if pieces:  # the head has arrived, and was passed on with the first keep-alive
        assert answer.status == 200
        [error] = [json.loads(event)["error"] for event in answer.events]
    else:
        assert answer.status == 504
        error = answer.error
    assert (error["code"], error["param"]) == ("deadline_exceeded", "total")
    assert error["message"] == (
        f"the 2.5 s that {HEADER} allows in total ran out waiting for the neuron's first token (first_byte);"
        " spent: connect 0.000 s, first_byte 2.500 s"
    )
    assert trio.current_time() == 2.5
    await gateway.idle()
    assert (gateway.fleet.nodes["a"].misses, gateway.fleet.nodes["a"].breaker.clean) == (0, True)


async def test_stream_beyond_the_deadline_ends_with_an_error_event(autojump_clock, before):
    """The chunks so far stay, there is no `[DONE]`, and the neuron is free."""
    beast = neuron("a", [24576], [SMALL])
    gateway = before(beast)
    answer = await gateway.client().ask(stream=True, headers=IN_2500_MS)

    error = json.loads(answer.events[-1])["error"]
    assert trio.current_time() == 2.5
    assert (error["code"], error["param"]) == ("deadline_exceeded", "total")
    assert "waiting for the neuron's next chunk (idle)" in error["message"]
    assert len(answer.events) > 2
    assert "[DONE]" not in answer.events
    await gateway.idle()
    assert [(gone.phase, gone.at) for gone in beast.cancelled] == [("decode", 2.5)]


async def test_messages_stream_beyond_the_deadline_ends_with_its_error_event(autojump_clock, before):
    """`error`, and nothing after it."""
    gateway = before(neuron("a", [24576], [SMALL]))
    answer = await gateway.client().ask(path="/v1/messages", stream=True, headers=IN_2500_MS, max_tokens=64)

    *_, last = answer.body.decode().split("event: ")
    assert last.startswith("error\n")
    assert "in total ran out" in last
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_responses_stream_beyond_the_deadline_ends_with_response_failed(autojump_clock, before):
    """An `error` with the gateway's code and `response.failed`, numbered like the rest, and nothing after."""
    beast = neuron("a", [24576], [SMALL])
    gateway = before(beast)
    answer = await gateway.client().ask(ASKED, "/v1/responses", stream=True, headers=IN_2500_MS)

    events = [json.loads(line[len("data: ") :]) for line in answer.body.decode().splitlines() if line[:5] == "data:"]
    *_, error, last = events
    assert (error["type"], error["error"]["code"], error["error"]["param"]) == ("error", "deadline_exceeded", "total")
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert "in total ran out waiting for the neuron's next chunk (idle)" in last["response"]["error"]["message"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert any(event["type"] == "response.output_text.delta" for event in events)
    assert trio.current_time() == 2.5
    await gateway.idle()
    assert [(gone.phase, gone.at) for gone in beast.cancelled] == [("decode", 2.5)]


async def test_responses_request_without_stream_gets_the_504(autojump_clock, before):
    """In OpenAI's envelope, as on every path of that dialect."""
    gateway = before(neuron("a", [24576], [SMALL]))
    answer = await gateway.client().ask(ASKED, "/v1/responses", headers=IN_2500_MS)

    assert (answer.status, answer.error["code"], answer.error["param"]) == (504, "deadline_exceeded", "total")
    assert "in total ran out waiting for the neuron's first token (first_byte)" in answer.error["message"]
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_body_beyond_the_deadline_is_left_incomplete(autojump_clock, before):
    """The status was sent, so nothing else can show the error."""
    gateway = before(sending(chunked(JSON, kind="application/json", end=b"")))

    with pytest.raises(EOFError):
        await gateway.client().ask(headers=IN_2500_MS)
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_deadline_covers_connecting(autojump_clock, before):
    """The error names the phase; the phase's own deadline was longer."""
    gateway = before(None)

    async def never(origin):
        await trio.sleep_forever()

    gateway.upstream._connect = never
    answer = await gateway.client().ask(headers=IN_2500_MS)

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert "a connection to the neuron (connect)" in answer.error["message"]
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_deadline_covers_a_cold_load_which_continues(autojump_clock):
    """A 504, not the 503 of the load deadline: this client will not retry. The next request finds the model loaded."""
    model = a_sim_model("m", load_s=5)
    async with a_world(a_sim("beast", model), profiles=(profile_of(model),)) as world:
        began = trio.current_time()
        answer = await world.ask("m", headers=[(HEADER.encode(), b"2500")])

        assert (answer.status, answer.errors[0]["param"]) == (504, "total")
        assert "the model to be loaded (load); spent: load 2.500 s" in answer.errors[0]["message"]
        assert trio.current_time() - began == 2.5
        await trio.sleep(4)
        assert (await world.ask("m")).ended_at - began == pytest.approx(2.5 + 4 + 1.02, abs=0.01)
        assert world.load_calls() == ["beast"]


async def test_deadline_covers_the_queue(autojump_clock):
    """The request leaves the queue, and those behind it move up."""
    model = a_sim_model("m", overhead_s=10)
    profile = profile_of(model, max_concurrent=1)
    async with (
        a_world(a_sim("beast", model, loaded=("m",)), profiles=(profile,)) as world,
        trio.open_nursery() as clients,
    ):
        began = trio.current_time()
        clients.start_soon(world.ask, "m")
        await wait_all_tasks_blocked()
        answer = await world.ask("m", headers=[(HEADER.encode(), b"2500")])

        assert trio.current_time() - began == 2.5
        assert (answer.status, answer.errors[0]["code"], answer.errors[0]["param"]) == (
            504,
            "deadline_exceeded",
            "total",
        )
        assert answer.errors[0]["message"] == (
            f"the 2.5 s that {HEADER} allows in total ran out waiting for a free slot at a neuron (queue);"
            " spent: queue 2.500 s"
        )
        assert world.admission.views() == []
        assert world.fleet.leases == 1
        assert (await world.ask("m")).ended_at - began == pytest.approx(2 * 10.02, abs=0.01)


def head_alone(content_length):
    lines = ("POST /v1/chat/completions HTTP/1.1", "host: x", f"content-length: {content_length}", *IN_2500_MS)
    return "\r\n".join((*lines, "", "")).encode()


async def test_deadline_covers_the_arrival_of_the_body(autojump_clock, before):
    """A 504 at its end, instead of the 408 of a request without a deadline."""
    gateway = before(sending())
    client = gateway.client()
    await client.stream.send_all(head_alone(9))
    answer = await client.answer()

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert "headers and body to arrive (header)" in answer.error["message"]
    assert answer.arrivals[0][0] == 2.5


async def test_deadline_counts_from_the_requests_head(autojump_clock, before):
    """The body took 2 s of it, so half a second is left for the neuron."""
    gateway = before(sending())
    client = gateway.client()
    body = b'{"model":"helexa/small"}'
    await client.stream.send_all(head_alone(len(body)))
    await trio.sleep(2)
    await client.stream.send_all(body)
    _, headers = await client.head()

    assert b"first_byte 0.500 s" in await client.piece(headers)
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_deadline_covers_all_attempts_together(autojump_clock, before):
    """The first neuron takes its time to refuse; the second has the rest."""
    slow, never = neuron("a", [24576], [SMALL]), neuron("b", [24576], [SMALL])
    slow.faults.add(faults.Hang(seconds=2))
    slow.faults.add(faults.HttpError(status=503))
    never.faults.add(faults.Hang())
    gateway = before(slow, never, attempts=2)
    answer = await gateway.client().ask(headers=IN_2500_MS)

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert trio.current_time() == 2.5
    assert [len(each.requests) for each in (slow, never)] == [1, 1]
    await gateway.idle()


async def test_phase_deadlines_apply_within_the_total_deadline(autojump_clock, before):
    """The earlier one counts."""
    gateway = before(sending(), deadlines=DeadlineSettings(first_byte_seconds=2))
    answer = await gateway.client().ask(headers=IN_2500_MS)

    assert (answer.status, answer.error["param"]) == (504, "first_byte")
    assert trio.current_time() == 2


async def test_answer_in_time_is_unchanged(autojump_clock, before):
    """Even just in time: the same bytes as without a deadline."""
    gateway = before(neuron("a", [24576], [SMALL]))
    unhurried = await gateway.client().ask(stream=True)
    took_ms = round(trio.current_time() * 1000)
    hurried = await gateway.client().ask(stream=True, headers=(f"{HEADER}: {took_ms + 1}",))

    assert hurried.events[-1] == "[DONE]"
    assert len(hurried.events) == len(unhurried.events)
    await gateway.idle()


async def test_500_random_deadlines_leave_nothing_behind(autojump_clock, before, nursery):
    """Gauges, leases and connections in use are 0, and the pool holds no broken connection."""
    beast = neuron("a", [24576], [SMALL])
    gateway = before(beast)
    moments = random.Random(20261125)  # noqa: S311 - replayable, not secret
    ended = {"whole": 0, "cut": 0}

    async def one(stream, deadline_ms):
        answer = await gateway.client().ask(stream=stream, headers=(f"{HEADER}: {deadline_ms}",))
        ended["cut" if b'"param":"total"' in answer.body else "whole"] += 1

    for _ in range(10):
        async with trio.open_nursery() as clients:
            for _ in range(50):
                clients.start_soon(one, moments.random() < 0.6, moments.randint(1, 40_000))
    await wait_all_tasks_blocked()

    assert sum(ended.values()) == 500
    assert min(ended.values()) > 50
    await gateway.idle()
    assert beast.violations == []
    assert all(connection.is_quiet() for resting in gateway.upstream._idle.values() for connection in resting)
