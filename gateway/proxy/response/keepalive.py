"""Keep-alive comments for a client while the upstream sends nothing, and the early 200 before the upstream's head."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import trio

from gateway.config.settings import StreamingSettings
from gateway.proxy.response.client_response import ClientResponse, Head

__all__ = ["KeepAlive", "SilenceWatch"]

LOOK_INTERVAL_S = 0.25

# (after so many seconds of silence, seconds from one keep-alive to the next). Clients that fear for their connection do
# so in the first seconds; proxies need a sign within a minute. go-openai gives up after 300 lines without data, and a
# comment is two: these are 106 lines in 600 s and 266 in 1800 s, the defaults for a prefill and for a load.
_SLOWER = ((30.0, 15.0), (12.0, 6.0))


class KeepAlive:
    """Sends keep-alives for one streaming request. `run` is a task of the request's nursery.

    Before the upstream's head arrives, `early_commit_seconds` after the start, it sends `head` with a first comment.
    After that it sends a comment after each `keepalive_seconds` without a write; in a long silence less often, see
    `_SLOWER`.

    Args:
        client: The response to write to.
        settings: Both times, in seconds; 0 disables either.
        head: Status and headers for an early 200.

    Attributes:
        comment: Gives the text of the next comment: what the client waits for. None for the usual text.
    """

    __slots__ = (
        "_early_commit_s",
        "_keepalive_s",
        "_last_sign_at",
        "_started_at",
        "client",
        "comment",
        "head",
        "head_received",
        "last_write_at",
    )

    def __init__(
        self, client: ClientResponse, settings: StreamingSettings, head: Head, now: float | None = None
    ) -> None:
        self.client = client
        self.head = head
        self.comment: Callable[[], str] | None = None
        self._keepalive_s = settings.keepalive_seconds or math.inf
        self._early_commit_s = settings.early_commit_seconds or math.inf
        now = trio.current_time() if now is None else now
        self.last_write_at = now
        """When a part of the answer was last sent to the client; the relay sets it."""
        self._started_at = self._last_sign_at = now  # `begin` sets all three again
        self.head_received = False

    def stream_started(self, head: Head | None) -> None:
        """The head of an upstream's stream has arrived: send keep-alives after it from now on.

        Args:
            head: Replaces the head for the early 200. None keeps it, and has no effect after the first call.
        """
        if head is None and self.head_received:
            return
        self.head = head or self.head
        self.head_received = True
        self._last_sign_at = trio.current_time()

    def disable_keepalive(self) -> None:
        """The answer is not an event stream: send neither an early 200 nor a comment."""
        self._keepalive_s = self._early_commit_s = math.inf

    def release(self) -> None:
        """The request has ended. What makes its head refers to this object: a cycle, which the collector would free."""
        self.head = _no_head

    def begin(self) -> None:
        """The request has been read: its client waits from now on."""
        self._started_at = self._last_sign_at = self.last_write_at = trio.current_time()

    @property
    def shortest_s(self) -> float:
        """The shortest silence after which anything is sent."""
        return min(self._keepalive_s, self._early_commit_s)

    async def run(self) -> None:
        """Send keep-alives until cancelled.

        Raises:
            ClientGone: The client has disconnected.
        """
        while True:
            now = trio.current_time()
            due_at = self.due_at()
            if due_at <= now:
                await self.client.send_keepalive(self.head, None if self.comment is None else self.comment())
                self._last_sign_at = trio.current_time()
            else:
                # The head may arrive during the sleep and bring the next keep-alive nearer, at most to one interval.
                await trio.sleep_until(min(due_at, now + self._keepalive_s))

    def due_at(self) -> float:
        """When something is to be sent if nothing comes before, by Trio's clock."""
        if not (self.head_received or self.client.started):
            return self._started_at + self._early_commit_s
        last_sign_at = max(self._last_sign_at, self.last_write_at)
        return last_sign_at + max(self._keepalive_s, _slower_after(last_sign_at - self.last_write_at))


class SilenceWatch:
    """Starts the keep-alive task of each stream that falls silent, in one task for all streams.

    Most streams never do, and a task that is cancelled without having sent anything costs a third of a request.
    """

    def __init__(self) -> None:
        self._watched: dict[KeepAlive, Callable[[], None]] = {}
        self._running = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled; the streams that are watched then get their tasks."""
        self._running = True
        task_status.started()
        try:
            while True:
                await trio.sleep(LOOK_INTERVAL_S)
                latest = trio.current_time() + 2 * LOOK_INTERVAL_S
                for keepalive in [each for each in self._watched if each.due_at() <= latest]:
                    self._watched.pop(keepalive)()
        finally:
            self._running = False
            for start in self._watched.values():
                start()
            self._watched.clear()

    def watch(self, keepalive: KeepAlive, start: Callable[[], None]) -> None:
        """Call `start`, which starts `keepalive.run`, before the next keep-alive is due. `forget` it in time."""
        if self._running and keepalive.shortest_s > 3 * LOOK_INTERVAL_S:
            self._watched[keepalive] = start
        else:
            start()

    def forget(self, keepalive: KeepAlive) -> None:
        """The request has ended, or its task has been started."""
        self._watched.pop(keepalive, None)


def _no_head() -> NoReturn:
    raise RuntimeError("the request has ended")


def _slower_after(silence_s: float) -> float:
    return next((interval_s for after_s, interval_s in _SLOWER if silence_s >= after_s), 0.0)
