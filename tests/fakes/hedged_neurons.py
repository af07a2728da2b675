"""Two neurons in memory that answer when a test says, for requests with a hedge."""

import trio
from fakes.scripted import read_request, with_length
from trio.testing import wait_all_tasks_blocked

from gateway.telemetry.explain import explain_requests

JSON = b'{"object":"chat.completion","model":"%b","choices":[]}'


class Peer:
    """A neuron that sends each piece at its time, and notes when it was asked and when it was left."""

    def __init__(self, *script):
        self.script = script
        self.asked_at = []
        self.left_at = None

    async def __call__(self, stream):
        await read_request(stream)
        self.asked_at.append(trio.current_time())
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._tell, stream, nursery.cancel_scope)
                if not await stream.receive_some():
                    self.left_at = trio.current_time()
                nursery.cancel_scope.cancel()
        except* trio.BrokenResourceError:
            self.left_at = trio.current_time()
        await stream.aclose()

    async def _tell(self, stream, scope):
        for when, what in self.script:
            await trio.sleep_until(when)
            if what is None:
                scope.cancel()
                return
            await stream.send_all(what)


def whole(name, at):
    return Peer((at, with_length(JSON % name.encode())))


def hedges(gateway):
    """The number of hedges by result, and of withheld ones by reason."""
    lines = [line for line in gateway.metrics.expose().decode().splitlines() if line.startswith("cortex_hedges")]
    return {line.split('"')[-2]: int(float(line.rpartition(" ")[2])) for line in lines}


async def attempts(gateway):
    await wait_all_tasks_blocked()
    [explained] = explain_requests("mine", gateway.request_log, None, trio.current_time())
    return [(one["node"], one["hedge"], one["result"], one["at_ms"], one["took_ms"]) for one in explained["attempts"]]
