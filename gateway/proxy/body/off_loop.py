"""Work on large bodies, requests and answers, outside the event loop.

What decodes and encodes JSON keeps the interpreter's lock for as long as one call takes. The limits of
`dialects/translation/bounds.py`, and its slices, keep each call below 50 ms; between two calls the event loop runs.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

import trio

__all__ = ["INLINE_BYTES", "LARGE_BYTES", "in_steps", "in_thread", "off_loop"]

INLINE_BYTES = 64 * 1024  # what is smaller takes at most 15 ms, whatever it contains
LARGE_BYTES = 1024 * 1024  # what is larger takes more than 10 ms, whatever it contains
_LARGE_VALUES = 10_000  # to translate as many takes 10 ms; a thread costs 0.2 ms

_threads = trio.CapacityLimiter(1)  # more would compete for the same lock

T = TypeVar("T")


async def off_loop(body: bytes, work: Callable[[], T]) -> T:
    """Do `work` on a body, in a thread if it may take long. Raises what `work` raises."""
    if len(body) <= INLINE_BYTES or (len(body) <= LARGE_BYTES and body.count(b",") <= _LARGE_VALUES):
        return work()
    return await in_thread(work)


async def in_steps(steps: Generator[None, None, T]) -> T:
    """Do work in steps, each of which is short: other tasks run after each. Returns what the generator returns."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        await trio.lowlevel.checkpoint()


async def in_thread(work: Callable[[], T]) -> T:
    """Do `work` in a thread. A cancelled caller waits for its end, since nothing can interrupt it."""
    return await trio.to_thread.run_sync(work, limiter=_threads)
