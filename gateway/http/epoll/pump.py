"""Carries streams from neurons to clients in one task for all of them. Bytes and descriptors; knows no HTTP messages.

A task that is woken for each chunk costs more than the chunk. So the request's task hands its stream over (`carry`) and
waits for one event, in its own nursery and cancel scope. The pump's task waits on an epoll descriptor that has the
neurons' sockets of all streams, and in one turn reads, converts and writes a chunk of every stream that is ready.

A stream comes back to its task as soon as it needs more than that: at its end, on an error, when its client does not
take a whole chunk. Why, and what it gains: docs/decisions/0015-pump.md.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable

import trio

from gateway.asgi import Flow

__all__ = ["Pump"]

READ_BYTES = 65536
FLOWS_PER_TURN = 64
TURN_BYTES = 256 * 1024
"""Read in one turn; then other tasks run. Bytes of a stream cost at most 15 ns each, so this is 4 ms at the worst."""


class Pump:
    """Runs as one task; `carry` is called by the requests' tasks.

    Each neuron's socket has one owner at a time: the pump while `carry` runs, the request's task otherwise. To the
    client's socket it only writes, without waiting.

    Args:
        coalesce_s: How long a turn waits after the one before it, under load, so that more streams are ready in it.
    """

    def __init__(self, coalesce_s: float = 0.0) -> None:
        self._coalesce_s = coalesce_s
        self._epoll: select.epoll | None = None
        self._lanes: dict[int, _Lane] = {}
        self._ready: list[int] = []  # descriptors that were ready, but for which the last turn had no room
        self._has_more = False  # the last turn was full, so others are probably ready
        self._last_turn_at = -1.0

    @property
    def running(self) -> bool:
        """Whether `carry` can be called. False where the system has no epoll."""
        return self._epoll is not None

    @property
    def carried(self) -> int:
        """The number of streams that the pump carries now."""
        return len(self._lanes)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry streams until cancelled; those that are left then go on in their own tasks."""
        if not hasattr(select, "epoll"):
            task_status.started()
            return
        with select.epoll() as epoll:
            self._epoll = epoll
            task_status.started()
            try:
                await self._run(epoll)
            finally:
                self._epoll = None
                for lane in self._lanes.values():
                    lane.left.set()
                self._lanes.clear()
                self._ready.clear()

    async def _run(self, epoll: select.epoll) -> None:
        """Take turns. Each begins with a checkpoint.

        After a full turn the next one does not wait for more: as many chunks wait already, and more would be late.
        """
        fd = epoll.fileno()
        is_loaded = False
        while True:
            if self._has_more:
                await trio.lowlevel.checkpoint()
            elif is_loaded:
                await trio.sleep(self._coalesce_s)
            else:
                await trio.lowlevel.wait_readable(fd)
            is_loaded = self._turn(epoll)

    async def carry(self, source: int, sink: int, flow: Flow, owe: Callable[[bytes], None], *, chunked: bool) -> None:
        """Relay what arrives at `source` to `sink`, until the flow leaves. Cancelling this takes the flow out at once.

        Returns when `flow.feed` has returned None, when the source has ended or failed (the next read from it tells
        which), when the sink does not take a whole chunk, and when the pump stops.

        Args:
            source: The descriptor of the neuron's socket. While this runs, nothing else may wait for it or read it.
            sink: The descriptor of the client's socket. Both must stay open until this returns.
            flow: Turns the bytes of one into those of the other.
            owe: Takes the bytes that the sink has not taken; they must be sent before any others.
            chunked: Whether each piece is framed as a chunk (RFC 9112, section 7.1).

        Raises:
            Exception: What `flow.feed` raised.
        """
        epoll = self._epoll
        if epoll is None:
            await trio.lowlevel.checkpoint()
            return
        lane = _Lane(source, sink, flow.feed, owe, chunked=chunked)
        epoll.register(source, select.EPOLLIN)
        self._lanes[source] = lane
        try:
            await lane.left.wait()
        finally:
            self._release(lane)
        if lane.crash is not None:
            try:
                raise lane.crash
            finally:
                lane.crash = None  # its traceback refers to the lane

    def _turn(self, epoll: select.epoll) -> bool:
        """Relay one piece of every stream that is ready, within the limits. Returns whether the pump is under load."""
        now = trio.current_time()
        ready = self._ready or [fd for fd, _ in epoll.poll(0, FLOWS_PER_TURN)]
        self._ready = []
        self._has_more = len(ready) == FLOWS_PER_TURN
        lanes = self._lanes
        left_bytes = TURN_BYTES
        for number, source in enumerate(ready):
            if source not in lanes:
                continue  # it left since it was found ready
            left_bytes -= self._relay(lanes[source], now)
            if left_bytes < 0:
                self._ready = ready[number + 1 :]
                self._has_more = True
                break
        since_last_s, self._last_turn_at = now - self._last_turn_at, now
        return self._coalesce_s > 0 and (len(ready) > 1 or (bool(ready) and since_last_s < self._coalesce_s))

    def _relay(self, lane: _Lane, now: float) -> int:
        """Read once, convert, write once. Returns the number of bytes read."""
        try:
            data = os.read(lane.source, READ_BYTES)
        except BlockingIOError:
            return 0  # the kernel may report a socket readable when it is not (select(2), BUGS)
        except OSError:
            data = b""
        if not data:
            self._leave(lane)
            return 0
        try:
            piece = lane.feed(data, now)
        except Exception as crash:  # noqa: BLE001 - raised in the request's task: it fails only that request
            lane.crash = crash
            piece = None
        if piece is None:
            self._leave(lane)
        elif piece:
            if lane.chunked:
                piece = b"%x\r\n%b\r\n" % (len(piece), piece)
            try:
                sent = os.write(lane.sink, piece)
            except OSError:  # full, or closed: the next write tells which
                sent = 0
            if sent != len(piece):
                lane.owe(piece[sent:])
                self._leave(lane)
        return len(data)

    def _leave(self, lane: _Lane) -> None:
        """The flow goes on in its own task."""
        self._release(lane)
        lane.left.set()

    def _release(self, lane: _Lane) -> None:
        """Stop watching, if this lane is still watched: its descriptor may have another one by now."""
        if self._lanes.get(lane.source) is lane:
            del self._lanes[lane.source]
            if self._epoll is not None:
                with contextlib.suppress(OSError):  # closed already
                    self._epoll.unregister(lane.source)


class _Lane:
    """One stream while the pump carries it."""

    __slots__ = ("chunked", "crash", "feed", "left", "owe", "sink", "source")

    def __init__(
        self,
        source: int,
        sink: int,
        feed: Callable[[bytes, float], bytes | None],
        owe: Callable[[bytes], None],
        *,
        chunked: bool,
    ) -> None:
        self.source = source
        self.sink = sink
        self.feed = feed
        self.owe = owe
        self.chunked = chunked
        self.left = trio.Event()
        self.crash: Exception | None = None
