"""How long a simulated neuron takes, exactly: all in memory, under the autojump clock."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import trio
from sim_wire import read_until, request
from trio.testing import MockClock

from neuron.simulated import PRESETS, SimNeuron
from neuron.simulated.api import LoadRequest, load
from neuron.simulated.faults import SilentPrefill, Slow

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"
Open = Callable[[], trio.abc.Stream]


@pytest.mark.parametrize(("model", "expected_s"), [(SMALL, 2.5), (LARGE, 6.7)])
@pytest.mark.parametrize("stream", [True, False])
async def test_probe_takes_its_reference_time(
    dial: Open, autojump_clock: MockClock, model: str, expected_s: float, stream: bool
) -> None:
    """The capital of Georgia takes 2.5 s on the small and 6.7 s on the large model, streamed or not, every time."""
    client = dial()
    for time in (1, 2):
        await client.send_all(request(model, stream=stream))
        answer = await read_until(client, b"[DONE]\n\n\r\n0\r\n\r\n" if stream else b"}}}")

        assert trio.current_time() == pytest.approx(time * expected_s, abs=1e-9)
        assert (b"isi" if stream else b"Tbilisi") in answer


async def test_speed_divides_every_time(dial: Open, simulated: SimNeuron, autojump_clock: MockClock) -> None:
    """Ten times the speed, a tenth of the time."""
    simulated.speed = 10
    client = dial()
    await client.send_all(request(LARGE))
    await read_until(client, b"Tbilisi")

    assert trio.current_time() == pytest.approx(0.67)


async def test_infinite_speed_takes_no_time(dial: Open, simulated: SimNeuron, autojump_clock: MockClock) -> None:
    """A neuron can be made to answer at once."""
    simulated.speed = math.inf
    client = dial()
    await client.send_all(request(LARGE))
    await read_until(client, b"Tbilisi")

    assert trio.current_time() == 0


async def test_change_of_speed_concerns_what_is_being_answered(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock
) -> None:
    """A higher speed applies at once to a running request, in prefill and between tokens."""
    for held_at in ('"role"', '"Tbil"'):
        simulated.speed = 1
        client = dial()
        await client.send_all(request(SMALL, stream=True))
        await read_until(client, held_at.encode())
        simulated.speed = 1e-9
        await trio.sleep(3600)
        hurried_at = trio.current_time()
        simulated.speed = math.inf
        await read_until(client, b"[DONE]")

        assert trio.current_time() == hurried_at


async def test_role_chunk_comes_before_prefill_and_tokens_after(dial: Open, autojump_clock: MockClock) -> None:
    """The role chunk leaves at once; the first token after prefill and one decode step; then one token per step."""
    client = dial()
    await client.send_all(request(SMALL, stream=True))

    await read_until(client, b'"role"')
    assert trio.current_time() == 0
    await read_until(client, b'"Tbil"')
    assert trio.current_time() == 2.5 - 1 / 64
    await read_until(client, b'"isi"')
    assert trio.current_time() == 2.5


async def test_silent_prefill_adds_silence_after_the_role_chunk(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock
) -> None:
    """Nine minutes of silence lie between the role chunk and the first token."""
    simulated.faults.add(SilentPrefill(seconds=540))
    client = dial()
    await client.send_all(request(SMALL, stream=True))
    await read_until(client, b'"role"')
    assert trio.current_time() == 0
    await read_until(client, b"[DONE]")
    assert trio.current_time() == 542.5


async def test_slow_stretches_everything(dial: Open, simulated: SimNeuron, autojump_clock: MockClock) -> None:
    """A neuron four times as slow takes four times as long."""
    simulated.faults.add(Slow(factor=4))
    client = dial()
    await client.send_all(request(SMALL))
    await read_until(client, b"Tbilisi")

    assert trio.current_time() == 10


async def test_load_takes_its_time_and_holds_its_vram_meanwhile(
    simulated: SimNeuron, autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    """VRAM is gone when a load begins, and the model is there when it ends."""
    free_mb = simulated.vram_free_mb(1)
    nursery.start_soon(load, simulated, None, LoadRequest("Qwen/Qwen3-14B"))
    await trio.testing.wait_all_tasks_blocked()

    assert simulated.loaded("Qwen/Qwen3-14B") is None
    assert simulated.vram_free_mb(0) + simulated.vram_free_mb(1) < free_mb + simulated.devices[0].vram_total_mb
    await trio.sleep(PRESETS["Qwen/Qwen3-14B"].load_seconds)
    await trio.testing.wait_all_tasks_blocked()
    assert simulated.loaded("Qwen/Qwen3-14B") is not None


async def test_queued_request_starts_when_a_place_is_free(
    dial: Open, simulated: SimNeuron, autojump_clock: MockClock
) -> None:
    """With four places, the fifth request waits for the first to end, and takes as long again."""
    clients = [dial() for _ in range(5)]
    for client in clients:
        await client.send_all(request(LARGE))
        await trio.testing.wait_all_tasks_blocked()
    resident = simulated.loaded(LARGE)
    assert resident is not None
    assert (resident.places.in_flight, resident.places.queue_depth) == (4, 1)

    await read_until(clients[0], b"Tbilisi")
    assert trio.current_time() == pytest.approx(6.7)
    await read_until(clients[4], b"Tbilisi")
    assert trio.current_time() == pytest.approx(13.4)
    assert (resident.places.in_flight, resident.places.queue_depth) == (0, 0)


async def test_pre_warm_loads_one_after_the_other(simulated: SimNeuron, autojump_clock: MockClock) -> None:
    """What a neuron loads by itself shows in its activation until it is done; what cannot be loaded has failed."""
    simulated.activation.pending = ["Qwen/Qwen3-8B", "no/such"]
    assert simulated.activation.state == "pre_warming"
    await simulated.warm()

    assert trio.current_time() == PRESETS["Qwen/Qwen3-8B"].load_seconds
    assert simulated.activation.completed == ["Qwen/Qwen3-8B"]
    assert simulated.activation.failed == [("no/such", "unknown model 'no/such'")]
    assert simulated.activation.state == "ready"
