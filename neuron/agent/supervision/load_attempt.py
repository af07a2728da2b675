"""A load or a wake under way, which any number of requests wait for."""

from __future__ import annotations

import trio

from neuron.agent.errors import NeuronRequestError

__all__ = ["LoadAttempt"]


class LoadAttempt:
    """A load or a wake under way. Any number of requests wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.failure: NeuronRequestError | None = None

    def succeed(self) -> None:
        """The model is loaded."""
        self.done.set()

    def fail(self, failure: NeuronRequestError) -> None:
        """It is not, and `failure` is what the requests get."""
        self.failure = failure
        self.done.set()

    async def wait(self) -> None:
        """Wait for the end. Raises the failure."""
        await self.done.wait()
        if self.failure is not None:
            raise self.failure
