"""Sleep and wake of vLLM, in the order that its documentation gives for each level.

https://docs.vllm.ai/en/latest/features/sleep_mode/: level 1 keeps the weights in host memory; level 2 drops them, so
that waking reads them from disk again before the key-value cache is allocated.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from neuron.agent.engines.engine_client import EngineCalls, EngineUnreachable

__all__ = ["SleepFailed", "put_to_sleep", "wake_up", "why_failed"]

SLEEP_CALL_S = 120.0  # of one sleep or wake: weights of 100 GB move at some GB/s


class SleepFailed(Exception):
    """The engine refused a call of the sequence."""


async def put_to_sleep(engine: EngineCalls, level: int) -> None:
    """Free the device memory of an idle engine. Raises SleepFailed or EngineUnreachable."""
    await _post(engine, f"/sleep?level={level}")


async def wake_up(engine: EngineCalls, level: int) -> None:
    """Take the device memory again. Raises SleepFailed or EngineUnreachable."""
    if level == 1:
        await _post(engine, "/wake_up")
        return
    await _post(engine, "/wake_up?tags=weights")
    await _post(engine, "/collective_rpc", {"method": "reload_weights"})
    await _post(engine, "/wake_up?tags=kv_cache")


async def why_failed(
    call: Callable[[EngineCalls, int], Awaitable[None]], engine: EngineCalls, level: int
) -> str | None:
    """Do `put_to_sleep` or `wake_up` within a deadline; return why it failed, or None."""
    try:
        with trio.move_on_after(SLEEP_CALL_S) as in_time:
            await call(engine, level)
    except (SleepFailed, EngineUnreachable) as error:
        return str(error)
    return f"no answer within {SLEEP_CALL_S:g} s" if in_time.cancelled_caught else None


async def _post(engine: EngineCalls, path: str, body: object = None) -> None:
    status, answer = await engine.post(path, body)
    if status != 200:
        raise SleepFailed(f"{path} was answered with {status}: {answer.decode('utf-8', 'replace')[:200]}")
