"""What a request with pictures costs the others: memory of one body, and no step of the event loop that is long."""

import hashlib
import json
import time
import tracemalloc

import pytest
import trio
from fakes.in_memory import SMALL
from fakes.known_keys import KnownKeys
from fakes.large_bodies import StepTimes, ThreadedGateway, body_with_picture
from fakes.patience import SAFETY_NET_S, best_of, measured

from catalogue.models import Alias, Target
from gateway.access.keys.key import Key
from gateway.access.limits.limit import Limits
from gateway.access.limits.limiter import Limiter
from gateway.config.settings import DeadlineSettings, Settings
from gateway.proxy.body import off_loop

MIB = 1024**2
SETTINGS = Settings(deadlines=DeadlineSettings(upload_seconds=SAFETY_NET_S))
ALIASES = {
    "none": None,
    "name": Alias.plain("helexa/small", SMALL),
    "params": Alias("helexa/small", (Target(SMALL),), params={"top_p": "0.5"}, force={"seed": "1", "n": "2"}),
}


def expected_body(body, alias):
    """The bytes that the neuron must get: the client's, but for the model's name and what the alias sets."""
    body = body.replace(b"helexa/small", SMALL.encode())
    if alias == "params":
        body = b'{"top_p":0.5,"seed":1,' + body.replace(b'"n": 3', b'"n": 2')[1:]
    return body


@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("size_bytes", [MIB, 20 * MIB])
async def test_a_body_is_in_memory_once(nursery, size_bytes, alias):
    """Twice only while it is put together: pieces and body. The neuron gets it with what the alias changes."""
    gateway = ThreadedGateway(nursery, settings=SETTINGS, alias=ALIASES[alias])
    body = body_with_picture(SMALL if alias == "none" else "helexa/small", size_bytes, n=3)
    peaks = []

    def reset():
        peaks.append(tracemalloc.get_traced_memory()[1] - before)
        tracemalloc.reset_peak()

    await gateway.ask(body_with_picture(SMALL, 1000))  # what is made once
    gateway.received.clear()
    gateway.before_first_byte = reset
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        status = await gateway.ask(body)
        reset()
    finally:
        tracemalloc.stop()

    wanted = expected_body(body, alias)
    assert status == b"HTTP/1.1 200 OK"
    assert [(size, digest) for _, size, digest in gateway.received] == [
        (len(wanted), hashlib.sha256(wanted).hexdigest())
    ]
    until_sent, while_sent = peaks
    assert until_sent < 2 * len(body) + MIB
    assert while_sent < len(body) + MIB


@measured
@pytest.mark.parametrize("alias", ALIASES)
@pytest.mark.parametrize("size_bytes", [MIB, 20 * MIB, 63 * MIB])
async def test_no_step_takes_5_ms(nursery, monkeypatch, size_bytes, alias):
    """CPU time of the loop's thread; and of a thread that keeps the interpreter's lock, for which the loop waits.

    Where the kernel alone needs nearly as long to take the body's memory back, a step may take twice that.
    """
    gateway = ThreadedGateway(nursery, settings=SETTINGS, alias=ALIASES[alias])
    body = body_with_picture("helexa/small", size_bytes, n=3)
    in_threads = []

    async def in_thread(work):
        def timed():
            began = time.thread_time()
            try:
                return work()
            finally:
                in_threads.append(time.thread_time() - began)

        return await trio.to_thread.run_sync(timed)

    monkeypatch.setattr(off_loop, "in_thread", in_thread)  # not where a body is put together: that releases the lock

    async def take():
        steps = StepTimes()
        in_threads.clear()
        trio.lowlevel.add_instrument(steps)
        try:
            assert await gateway.ask(body) == b"HTTP/1.1 200 OK"
        finally:
            trio.lowlevel.remove_instrument(steps)
        return max(steps.longest_s, *in_threads, 0) / max(0.005, 2 * freeing_s(len(body)))

    await best_of(take, 1)


@measured
@pytest.mark.parametrize("text", ["Why is that so? ", "base64" + "A" * 1000 + '"'])
async def test_what_a_long_prompt_may_use_is_not_counted_on_the_event_loop(nursery, text):
    """A key with a limit of tokens reserves them. The answer has no usage, so they also count at the end."""
    keys = KnownKeys(Key("k1", "alice", limits=Limits(tpm=10**12)))
    gateway = ThreadedGateway(nursery, settings=SETTINGS, access=keys.access, limiter=Limiter())
    size_bytes = 20 * MIB
    body = json.dumps({"model": SMALL, "messages": [{"role": "user", "content": text * (size_bytes // len(text))}]})

    async def take():
        steps = StepTimes()
        trio.lowlevel.add_instrument(steps)
        try:
            assert await gateway.ask(body.encode(), headers=(keys.bearer("alice"),)) == b"HTTP/1.1 200 OK"
        finally:
            trio.lowlevel.remove_instrument(steps)
        return steps.longest_s / max(0.005, 2 * freeing_s(size_bytes))

    await best_of(take, 1)
    assert gateway.entries[0].prompt_tokens == pytest.approx(len(body) / 3.5, rel=0.02)


def freeing_s(size_bytes: int) -> float:
    """CPU time in which the kernel takes so much memory back."""
    memory = b"x" * size_bytes
    began = time.thread_time()
    del memory
    return time.thread_time() - began
