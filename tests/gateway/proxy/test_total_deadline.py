"""A request's whole time: what a client may ask for, and that it is over when it is over. In memory, to the second."""

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
    """Makes a gateway before these peers, the first being asked first; no retries unless asked for."""

    def make(*peers, attempts=0, **sections):
        settings = dataclasses.replace(Settings(retries=RetrySettings(attempts=attempts)), **sections)
        return InMemoryGateway(nursery, dict(zip(("a", "b"), peers, strict=False)), settings)

    return make


def saying(*pieces):
    """A neuron that says this much, and then nothing."""

    async def peer(stream):
        await read_request(stream)
        for piece in pieces:
            await stream.send_all(piece)
        await stream.receive_some()

    return peer


# What a client may ask for...


@pytest.mark.parametrize(
    ("said", "allowed_s"), [("1", 0.001), ("2500", 2.5), ("00002500", 2.5), (str(LONGEST_MS), 86400)]
)
def test_client_says_it_in_whole_milliseconds(said, allowed_s):
    """From one to a day."""
    assert of_client([(b"accept", b"*/*"), (HEADER.encode(), said.encode())]).allowed_s == allowed_s


@pytest.mark.parametrize(
    "said", ["", "0", "-1", "+5", "1.5", "1e3", "5 5", "1_000", "0x10", "²", "soon", str(LONGEST_MS + 1), "9" * 5000]
)
def test_anything_else_is_refused_by_the_headers_name(said):
    """No guess at what it may have meant."""
    with pytest.raises(BadRequest, match=HEADER) as refused:
        of_client([(HEADER.encode(), said.encode())])

    assert refused.value.param == HEADER


def test_who_says_it_twice_is_refused():
    """Two proxies could disagree about which one counts."""
    with pytest.raises(BadRequest, match=HEADER):
        of_client([(HEADER.encode(), b"5"), (HEADER.encode(), b"5")])


def test_who_says_nothing_gets_no_deadline():
    """A stream may last for ever."""
    assert of_client([(b"x-request-id", b"5")]) is None


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
async def test_senseless_deadline_is_a_400_and_no_neuron_hears_of_it(autojump_clock, before, path):
    """In the form the client's dialect has."""
    beast = neuron("a", [24576], [SMALL])
    gateway = before(beast)
    answer = await gateway.client().ask(path=path, headers=(f"{HEADER}: soon",), max_tokens=9)

    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")
    assert HEADER in answer.error["message"]
    assert list(beast.requests) == []
    await gateway.idle()


async def test_no_neuron_gets_to_see_the_deadline(autojump_clock, before):
    """It sees us hang up; what is left of a number of ms would mean nothing to it."""
    received = []

    async def peer(stream):
        received.append(await read_request(stream))
        await stream.send_all(with_length(JSON))

    answer = await before(peer).client().ask(headers=IN_2500_MS)

    assert answer.status == 200
    assert HEADER.encode() not in received[0].lower()


# When it is over...


@pytest.mark.parametrize(("said", "stream"), [((), False), ((), True), ((chunked(ROLE, end=b""),), True)])
async def test_total_deadline_fires_exactly_on_time(autojump_clock, before, said, stream):
    """A 504 `total` that names the phase it was in and what each has spent; it says nothing about the neuron."""
    gateway = before(saying(*said))
    answer = await gateway.client().ask(stream=stream, headers=IN_2500_MS)

    if said:  # the head has come, and with the first silent second it went on to the client
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


async def test_stream_that_outlives_it_ends_in_an_error_event(autojump_clock, before):
    """What came stays; there is no `[DONE]`, and the neuron is free."""
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


async def test_messages_client_hears_of_it_as_an_event_of_its_own(autojump_clock, before):
    """`error`, and nothing after it."""
    gateway = before(neuron("a", [24576], [SMALL]))
    answer = await gateway.client().ask(path="/v1/messages", stream=True, headers=IN_2500_MS, max_tokens=64)

    *_, last = answer.body.decode().split("event: ")
    assert last.startswith("error\n")
    assert "in total ran out" in last
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_responses_client_hears_of_it_in_the_responses_own_terms(autojump_clock, before):
    """An `error` with our code and `response.failed`, numbered like the rest, and nothing after it."""
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


async def test_responses_client_that_streams_nothing_gets_the_504(autojump_clock, before):
    """In OpenAI's envelope, as on every other path of that dialect."""
    gateway = before(neuron("a", [24576], [SMALL]))
    answer = await gateway.client().ask(ASKED, "/v1/responses", headers=IN_2500_MS)

    assert (answer.status, answer.error["code"], answer.error["param"]) == (504, "deadline_exceeded", "total")
    assert "in total ran out waiting for the neuron's first token (first_byte)" in answer.error["message"]
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_plain_body_that_outlives_it_is_visibly_broken(autojump_clock, before):
    """Its status is out; there is no other way to say that it is not whole."""
    gateway = before(saying(chunked(JSON, kind="application/json", end=b"")))

    with pytest.raises(EOFError):
        await gateway.client().ask(headers=IN_2500_MS)
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_it_covers_connecting(autojump_clock, before):
    """The phase in which it ran out is named; the deadline of that phase was longer."""
    gateway = before(None)

    async def never(origin):
        await trio.sleep_forever()

    gateway.upstream._connect = never
    answer = await gateway.client().ask(headers=IN_2500_MS)

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert "a connection to the neuron (connect)" in answer.error["message"]
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_it_covers_a_cold_load_which_goes_on(autojump_clock):
    """A 504, not the 503 of the load's own deadline: this client will not ask again. The next one finds it loaded."""
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


async def test_it_covers_the_line_for_a_place(autojump_clock):
    """Who waits behind others for a neuron leaves the line when it is over, and whoever is behind moves up."""
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


async def test_body_that_does_not_come_spends_it(autojump_clock, before):
    """A 504 at its end, instead of the 408 of a client in no hurry."""
    gateway = before(saying())
    client = gateway.client()
    await client.stream.send_all(head_alone(9))
    answer = await client.answer()

    assert (answer.status, answer.error["param"]) == (504, "total")
    assert "headers and body to arrive (header)" in answer.error["message"]
    assert answer.arrivals[0][0] == 2.5


async def test_it_counts_from_the_requests_head(autojump_clock, before):
    """The body took 2 s of it, so the neuron has half a second."""
    gateway = before(saying())
    client = gateway.client()
    body = b'{"model":"helexa/small"}'
    await client.stream.send_all(head_alone(len(body)))
    await trio.sleep(2)
    await client.stream.send_all(body)
    _, headers = await client.head()

    assert b"first_byte 0.500 s" in await client.piece(headers)
    assert trio.current_time() == 2.5
    await gateway.idle()


async def test_it_covers_all_attempts_together(autojump_clock, before):
    """The first neuron takes its time to say no; the second has what is left."""
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


async def test_phases_keep_their_own_deadlines_within_it(autojump_clock, before):
    """The sooner of the two."""
    gateway = before(saying(), deadlines=DeadlineSettings(first_byte_seconds=2))
    answer = await gateway.client().ask(headers=IN_2500_MS)

    assert (answer.status, answer.error["param"]) == (504, "first_byte")
    assert trio.current_time() == 2


async def test_answer_in_time_is_whole(autojump_clock, before):
    """Also when only just: the same bytes as without a deadline."""
    gateway = before(neuron("a", [24576], [SMALL]))
    unhurried = await gateway.client().ask(stream=True)
    took_ms = round(trio.current_time() * 1000)
    hurried = await gateway.client().ask(stream=True, headers=(f"{HEADER}: {took_ms + 1}",))

    assert hurried.events[-1] == "[DONE]"
    assert len(hurried.events) == len(unhurried.events)
    await gateway.idle()


async def test_500_random_deadlines_leave_nothing_behind(autojump_clock, before, nursery):
    """Whatever was going on: gauges, leases and connections in use are 0, and the pool holds no broken connection."""
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
