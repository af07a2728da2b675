"""The deadline of each phase of a request, and the time spent in each.

All phases share one cancel scope whose deadline moves: a new scope per step costs 4.6 us of CPU, moving a deadline 1.5,
and a stream takes thousands of steps. `DeadlineSettings` has the duration of each phase.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from types import TracebackType
from typing import Final, Literal, Self

import trio

from gateway.config.settings import DeadlineSettings
from gateway.errors import DeadlineExceeded, GatewayError

Phase = Literal["header", "queue", "load", "connect", "upload", "first_byte", "idle"]

WAITING_FOR: Final[dict[Phase, str]] = {
    "header": "the request's headers and body to arrive",
    "queue": "a free slot at a neuron",
    "load": "the model to be loaded",
    "connect": "a connection to the neuron",
    "upload": "the neuron to take the request's body",
    "first_byte": "the neuron's first token",
    "idle": "the neuron's next chunk",
}
"""Completes the sentence "waited N s for ..."."""

# Both `upload` and `first_byte` wait for the neuron to process the request, so they share one setting.
_SETTINGS: Final[dict[Phase, str]] = {phase: f"{phase}_seconds" for phase in WAITING_FOR} | {
    "upload": "first_byte_seconds"
}

_SLACK = 0.001
AGAIN_S = 0.1  # after an attempt to end a wait that went on, because its input had arrived


class PhaseDeadlines:
    """Applies the current phase's deadline to a `with` block. The block may be entered again, but not nested.

    Code inside calls `enter` when the request begins to wait for something else. When a phase exceeds its deadline, the
    block is cancelled, and leaving it raises `DeadlineExceeded` with the phase's name as `param`.

    The block's cancel scope begins with its first phase, which sets its deadline: to move it later costs more. That
    phase must be entered in the block's own task, in no scope or nursery that ends before the block. Most requests
    wait only once, for input at one socket: `wait_for_input` needs no scope for that.

    Args:
        deadlines: The duration of each phase.
        request_scope: What `interrupt` cancels while the block has no scope, because no phase waits for anything; None
            if the block then goes on.
        now: Returns the time. A request's record has the clock's own method, which is faster.
    """

    __slots__ = (
        "_deadlines", "_input", "_interruption", "_is_open", "_is_overdue", "_next_move_at", "current",
        "entered", "exchanged_at", "now", "received_at", "request_scope", "scope",
    )  # fmt: skip

    def __init__(
        self,
        deadlines: DeadlineSettings,
        request_scope: trio.CancelScope | None = None,
        now: Callable[[], float] = trio.current_time,
    ) -> None:
        self._deadlines = deadlines
        self.now = now
        self.request_scope = request_scope
        self._is_open = False  # in the block
        self._input: int | None = None  # where it waits without a scope
        self._is_overdue = False
        self.scope: trio.CancelScope | None = None
        """That of the block, once a phase has needed one."""
        self._interruption: GatewayError | None = None
        self._next_move_at = -inf  # `progressed` does not move the deadline before
        self.current: Phase | None = None
        self.entered: list[tuple[Phase, float]] = []
        """(phase, Trio time in s at which it began), in order; a phase may occur more than once."""
        self.received_at = -inf
        """When the neuron last sent something (Trio time in s); -inf if it has sent nothing in this attempt."""
        self.exchanged_at: float | None = None
        """When the last exchange with a neuron ended (Trio time in s); None before."""

    def enter(self, phase: Phase, now: float | None = None, *, waits: bool = True) -> None:
        """Begin `phase`, with its whole deadline.

        Args:
            phase: What the request waits for next.
            now: The time, if the caller knows it.
            waits: False if everything is there already: the deadline then stays that of the phase before.
        """
        now = self.now() if now is None else now
        self.current = phase
        self._next_move_at = -inf
        self.entered.append((phase, now))
        if waits and self._is_open:
            allowed_s = getattr(self._deadlines, _SETTINGS[phase])  # as the method `allowed_s`
            self._next_move_at = now + allowed_s * _SLACK
            self._allow_until(now + allowed_s)

    def resume(self, phase: Phase) -> None:
        """Begin `phase` again; the time spent in it before counts towards its deadline."""
        now = self.now()
        spent_s = self.spent_ms(now).get(phase, 0.0) / 1000
        if phase != self.current:
            self.current = phase
            self.entered.append((phase, now))
        self._next_move_at = -inf
        self._allow_until(now + self.allowed_s(phase) - spent_s)

    def progressed(self) -> float:
        """Restart the deadline of the current phase: the neuron has sent something. Returns the time.

        A deadline that was moved less than `_SLACK` of its length ago stays, so it may come that much early. To move it
        costs 1.5 us, and a stream has a hundred chunks per second.
        """
        now = self.now()
        self.progressed_at(now)
        return now

    def progressed_at(self, now: float) -> None:
        """As `progressed`, for a caller that knows the time."""
        self.received_at = now
        if now >= self._next_move_at and self.current is not None:
            allowed_s = self.allowed_s(self.current)
            self._next_move_at = now + allowed_s * _SLACK
            self._allow_until(now + allowed_s)

    def was_entered(self, phase: Phase) -> bool:
        """Whether `phase` has begun at any time."""
        return any(entered == phase for entered, _ in self.entered)

    def continue_from(self, other: PhaseDeadlines) -> None:
        """Take over the phases that `other` has recorded so far."""
        self.entered[:] = other.entered

    def wait_for_input(self, fd: int, timer: WaitTimer) -> None:
        """A wait for input at `fd` begins, in the current phase. `end_wait` when it is over, in any case.

        At the deadline, or by `interrupt`, the wait ends with `trio.ClosedResourceError`; `check` then tells why.
        """
        if self._is_open and self.entered:
            self._input, self._is_overdue = fd, False
            phase, began_at = self.entered[-1]
            deadline = began_at + getattr(self._deadlines, _SETTINGS[phase])
            timer.deadlines[self] = deadline
            if deadline < timer.next_at:
                timer.wake_at(deadline)

    def end_wait(self, timer: WaitTimer) -> None:
        """The wait of `wait_for_input` is over."""
        if self._input is not None:
            self._input = None
            del timer.deadlines[self]

    def expire(self) -> None:
        """The deadline of `wait_for_input` has passed; called by the timer."""
        self._is_overdue = True
        self._wake()

    def check(self) -> None:
        """Raise the error that ended the wait of `wait_for_input`, if it did not end by itself."""
        if self._interruption is not None:
            raise self._interruption
        if self._is_overdue and self.current is not None:
            raise deadline_exceeded(self.current, self.allowed_s(self.current))

    def _wake(self) -> None:
        if self._input is not None:
            trio.lowlevel.notify_closing(self._input)  # its exchange fails, so the pool closes it

    def go_on(self) -> None:
        """The current phase goes on, after the wait of `wait_for_input`, and waits for more: with a scope."""
        if self._is_open and self.current is not None:
            self._allow_until(self.entered[-1][1] + self.allowed_s(self.current))

    def interrupt(self, error: GatewayError) -> None:
        """Cancel the block; leaving it raises `error`. Used for shutdown and by operators."""
        self._interruption = error
        if self.scope is not None:
            self.scope.cancel()
        elif self._input is not None:
            self._wake()
        elif self._is_open and self.request_scope is not None:
            self.request_scope.cancel()

    @property
    def interrupted(self) -> bool:
        """Whether `interrupt` was called."""
        return self._interruption is not None

    def _allow_until(self, deadline: float) -> None:
        if self.scope is not None:
            if self.scope.deadline != deadline:
                self.scope.deadline = deadline
        elif self._is_open:
            self.scope = trio.CancelScope(deadline=deadline)
            self.scope.__enter__()
            if self._interruption is not None:
                self.scope.cancel()

    def allowed_s(self, phase: Phase) -> float:
        """Return the deadline of a phase in seconds."""
        allowed: float = getattr(self._deadlines, _SETTINGS[phase])
        return allowed

    def spent_s(self, until: float) -> dict[str, float]:
        """Return the seconds spent in each phase, in the order they first began; the last phase ends at `until`."""
        if len(self.entered) == 1:
            phase, since = self.entered[0]
            return {phase: until - since}
        if not self.entered:
            return {}
        spent: dict[str, float] = {}
        phase, since = self.entered[0]
        for following, began in self.entered[1:]:
            spent[phase] = spent[phase] + (began - since) if phase in spent else began - since
            phase, since = following, began
        spent[phase] = spent[phase] + (until - since) if phase in spent else until - since
        return spent

    def spent_ms(self, until: float) -> dict[str, float]:
        """Return `spent_s` in milliseconds, rounded to three decimals."""
        spent = self.spent_s(until)
        for phase in spent:
            spent[phase] = int(spent[phase] * 1e6 + 0.5) / 1000
        return spent

    def __enter__(self) -> Self:
        if self._interruption is not None:
            raise self._interruption
        self._next_move_at = -inf
        self._is_open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scope, self.scope, self._is_open = self.scope, None, False
        if scope is None:
            return  # nothing was waited for
        scope.__exit__(kind, error, traceback)
        if not scope.cancelled_caught:
            return  # the block ended by itself, or by an outer cancellation
        if self._interruption is not None:
            raise self._interruption
        if self.current is not None:
            raise deadline_exceeded(self.current, self.allowed_s(self.current))


def deadline_exceeded(phase: Phase, allowed_s: float) -> DeadlineExceeded:
    """Return the error for a phase that exceeded its deadline."""
    return DeadlineExceeded(f"waited {allowed_s:g} s for {WAITING_FOR[phase]} ({phase})", param=phase)


class WaitTimer:
    """Ends the waits of many tasks at their deadlines, because a cancel scope for each costs 12 us.

    Its owner runs `run` for as long as there may be waits.

    Attributes:
        running: Whether waits are ended. Without that a wait needs a cancel scope.
        deadlines: When each wait ends (Trio's clock, in s). At that time its `expire` is called, and again every
            `AGAIN_S` until the wait is deleted here. After an entry before `next_at`, call `wake_at`.
        next_at: When this looks at the deadlines next.
    """

    def __init__(self) -> None:
        self.running = False
        self.deadlines: dict[PhaseDeadlines, float] = {}
        self._nap: trio.CancelScope | None = None
        self.next_at = inf

    def wake_at(self, deadline: float) -> None:
        """Look at the deadlines at this time already."""
        self.next_at = deadline
        if self._nap is not None:
            self._nap.deadline = deadline

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End waits until cancelled."""
        self.running = True
        try:
            while True:
                with trio.CancelScope(deadline=self.next_at) as self._nap:
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                    await trio.sleep_forever()
                self._expire_overdue()
        finally:
            self.running, self._nap = False, None

    def _expire_overdue(self) -> None:
        now = trio.current_time()
        for wait, deadline in list(self.deadlines.items()):
            if deadline <= now:
                self.deadlines[wait] = now + AGAIN_S
                wait.expire()
        self.next_at = min(self.deadlines.values(), default=inf)
