"""A simulated neuron: its state, and two ways to serve it (a real socket, or any Trio stream)."""

from __future__ import annotations

import math
from functools import partial

import trio

from neuron.simulated import api
from neuron.simulated.faults import CloseEvery, CloseIdle, RefuseAccept
from neuron.simulated.http import Patience, SimExchange, reset, serve_connection
from neuron.simulated.state import NeuronState, SimRefusal


class SimNeuron(NeuronState):
    """A neuron without a GPU. Serves the whole neuron API, and `/sim` for fault injection.

    Knows time only from Trio's clock, so under an autojump clock an answer of 6.7 s takes none.
    """

    async def serve(
        self,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve a TCP port until cancelled; `task_status` gets the base URL once it accepts connections.

        Raises:
            OSError: the port is taken.
        """
        self.start()
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self.serve_stream, port, host=host))
            self.port = listeners[0].socket.getsockname()[1]
            nursery.start_soon(self.warm)
            task_status.started(f"http://{host}:{self.port}")

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends, and close it."""
        self.start()
        refuse = self.faults.take(RefuseAccept)
        if refuse is not None:
            if refuse.reset:
                reset(stream)
            await trio.aclose_forcefully(stream)
            return
        await serve_connection(stream, self._handle, self._note_breach, self._note_cut, self._patience)

    def _note_breach(self, breach: str) -> None:
        self.violate(f"malformed HTTP: {breach}")

    def _patience(self) -> Patience:
        idle, every = self.faults.peek(CloseIdle), self.faults.peek(CloseEvery)
        return Patience(idle.seconds if idle else math.inf, every.requests if every else math.inf)

    def _note_cut(self) -> None:
        self.counters["cut_off"] += 1

    async def warm(self) -> None:
        """Load the pending models of `activation` one after the other. `serve` does this by itself."""
        activation = self.activation
        while activation.pending:
            model_id = activation.in_progress = activation.pending.pop(0)
            try:
                await api.load(self, None, api.LoadRequest(model_id))
                activation.completed.append(model_id)
            except SimRefusal as refusal:
                activation.failed.append((model_id, refusal.text))
            activation.in_progress = None

    async def _handle(self, exchange: SimExchange) -> None:
        self.start()  # the next request starts the uptime again
        await api.handle(self, exchange)
