"""A client that leaves: the simulated neuron stops at once, counts it, and says in which phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
from fakes.patience import best_of, measured, until
from sim_wire import Dial, read_until, request
from trio.testing import MockClock, wait_all_tasks_blocked

from neuron.simulated import SimNeuron
from neuron.simulated.faults import Hang, LateHeaders

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"
Open = Callable[[], trio.abc.Stream]


def assert_idle(simulated: SimNeuron) -> None:
    """Nothing runs and nothing waits."""
    for resident in simulated.residents.values():
        assert (resident.places.in_flight, resident.places.queue_depth) == (0, 0)


@pytest.mark.parametrize(
    ("phase", "leaves_at"),
    [("prefill", 1.0), ("decode", 2.6)],
)
@pytest.mark.parametrize("stream", [True, False])
async def test_departure_is_noticed_in_the_same_moment(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock, *, phase: str, leaves_at: float, stream: bool
) -> None:
    """Whatever it waits for, a client that leaves is noticed at that very time and its place is free."""
    client = dial()
    await client.send_all(request(SMALL, "write 300 words", stream=stream))
    with trio.move_on_at(leaves_at):
        while True:
            await client.receive_some()
    await client.aclose()
    await wait_all_tasks_blocked()

    (left,) = simulated.cancelled
    assert (left.phase, left.at, left.stream) == (phase, leaves_at, stream)
    assert simulated.counters["cancelled"] == 1
    assert_idle(simulated)


@pytest.mark.parametrize(("fault", "phase"), [(Hang(), "hang"), (LateHeaders(), "prefill")])
async def test_departure_before_headers(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock, fault: Hang | LateHeaders, phase: str
) -> None:
    """A client that has not even seen headers is noticed all the same."""
    simulated.faults.add(fault)
    client = dial()
    await client.send_all(request(SMALL, stream=True))
    await trio.sleep(1)
    await client.aclose()
    await wait_all_tasks_blocked()

    assert [left.phase for left in simulated.cancelled] == [phase]
    assert simulated.cancelled[0].at == 1
    assert_idle(simulated)


async def test_departure_from_the_queue_leaves_the_others_in_line(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock
) -> None:
    """One of two that wait leaves: the other gets the place, and those running never notice."""
    clients = [dial() for _ in range(6)]
    for client in clients:
        await client.send_all(request(LARGE))
        await wait_all_tasks_blocked()
    await clients[4].aclose()
    await wait_all_tasks_blocked()
    assert [left.phase for left in simulated.cancelled] == ["queued"]

    await read_until(clients[5], b"Tbilisi")
    assert trio.current_time() == pytest.approx(13.4)
    assert_idle(simulated)


async def test_departure_after_the_answer_is_none(dial: Open, simulated: SimNeuron, autojump_clock: MockClock) -> None:
    """Leaving with all one came for is not counted."""
    client = dial()
    await client.send_all(request(SMALL, stream=True))
    await read_until(client, b"[DONE]")
    await client.aclose()
    await wait_all_tasks_blocked()

    assert not simulated.cancelled
    assert simulated.counters["completed"] == 1


@pytest.mark.parametrize("survives", [True, False])
async def test_departure_while_loading(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock, survives: bool
) -> None:
    """A load whose client leaves is aborted and its VRAM free again; or goes on, where the neuron is of that kind."""
    simulated.load_survives_client = survives
    client = dial()
    body = b'{"model_id":"Qwen/Qwen3-8B","harness":"llamacpp"}'
    await client.send_all(b"POST /models/load HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    await trio.sleep(1)
    await client.aclose()
    await trio.sleep(30)

    assert (simulated.loaded("Qwen/Qwen3-8B") is not None) is survives
    assert [(left.phase, left.at) for left in simulated.cancelled] == ([] if survives else [("loading", 1)])


@measured
@pytest.mark.parametrize("stream", [True, False])
async def test_departure_over_a_real_socket(connect: Dial, simulated: SimNeuron, stream: bool) -> None:
    """Over TCP, too, the neuron knows within 50 ms."""
    simulated.speed = 1e-6

    async def depart() -> float:
        simulated.cancelled.clear()
        async with await connect() as client:
            await client.send_all(request(SMALL, stream=stream))
            await until(lambda: simulated.residents[SMALL].places.in_flight == 1)
            left_at = trio.current_time()
        await until(lambda: simulated.cancelled)
        return simulated.cancelled[0].at - left_at

    await best_of(depart, 0.05)
    await until(lambda: simulated.residents[SMALL].places.in_flight == 0)
    assert_idle(simulated)
