"""The phases of a request: one cancel scope whose deadline moves, and a note of when each began.

A new scope per step costs three times what moving a live one does (4.6 us of CPU against 1.5), and a stream takes
thousands of steps. Which phases there are, and how long each may take, is `DeadlineSettings`.
"""

from __future__ import annotations

from types import TracebackType
from typing import Final, Literal, Self

import trio

from gateway.config.settings import DeadlineSettings
from gateway.errors import DeadlineExceeded, GatewayError

Phase = Literal["header", "queue", "load", "connect", "upload", "first_byte", "idle"]

WAITING_FOR: Final[dict[Phase, str]] = {
    "header": "the request's headers and body to arrive",
    "queue": "a place at a neuron",
    "load": "the model to be loaded",
    "connect": "a connection to the neuron",
    "upload": "the neuron to take the request's body",
    "first_byte": "the neuron's first token",
    "idle": "the neuron's next chunk",
}
"""What is waited for in each, for a sentence."""

# An upload is for the neuron's time as the prefill is that it leads to: both end with the answer's first byte.
_SETTINGS: Final[dict[Phase, str]] = {"upload": "first_byte_seconds"}


class PhaseDeadlines:
    """A context manager around each thing a request waits for: entered again and again, never nested.

    Whoever begins to wait for something else calls `enter`. When a phase outlives its deadline, everything inside is
    cancelled and leaving the block raises `DeadlineExceeded` with the phase's name as `param`.
    """

    __slots__ = ("_deadlines", "_interruption", "_scope", "current", "entered")

    def __init__(self, deadlines: DeadlineSettings) -> None:
        self._deadlines = deadlines
        self._scope: trio.CancelScope | None = None
        self._interruption: GatewayError | None = None
        self.current: Phase | None = None
        self.entered: list[tuple[Phase, float]] = []
        """(phase, when it began by Trio's clock in s), in order; a phase may come more than once."""

    def enter(self, phase: Phase) -> None:
        """From now on it is `phase` that is waited for."""
        now = trio.current_time()
        self.current = phase
        self.entered.append((phase, now))
        self._allow_until(now + self.allowed_s(phase))

    def resume(self, phase: Phase) -> None:
        """As `enter`, less the time that the request has spent in this phase before: a wait in pieces is one wait."""
        now = trio.current_time()
        spent_s = self.spent_ms(now).get(phase, 0.0) / 1000
        if phase != self.current:
            self.current = phase
            self.entered.append((phase, now))
        self._allow_until(now + self.allowed_s(phase) - spent_s)

    def progressed(self) -> None:
        """Something came: the current phase's time starts anew."""
        if self.current is not None:
            self._allow_until(trio.current_time() + self.allowed_s(self.current))

    def was_entered(self, phase: Phase) -> bool:
        """Whether it was waited for at any time."""
        return any(entered == phase for entered, _ in self.entered)

    def continue_from(self, other: PhaseDeadlines) -> None:
        """What was waited for until now was waited for there."""
        self.entered[:] = other.entered

    def interrupt(self, error: GatewayError) -> None:
        """Stop what is going on, whatever it is; leaving the block raises `error`. For shutdown and operators."""
        self._interruption = error
        if self._scope is not None:
            self._scope.cancel()

    @property
    def interrupted(self) -> bool:
        """Whether somebody has stopped all this for good."""
        return self._interruption is not None

    def _allow_until(self, deadline: float) -> None:
        if self._scope is not None:
            self._scope.deadline = deadline

    def allowed_s(self, phase: Phase) -> float:
        """The deadline of a phase in seconds, from the settings."""
        allowed: float = getattr(self._deadlines, _SETTINGS.get(phase) or f"{phase}_seconds")
        return allowed

    def spent_s(self, until: float) -> dict[str, float]:
        """What each phase took so far in s, in the order they first began, `until` being the end of the last one."""
        spent: dict[str, float] = {}
        last: Phase | None = None
        since = until
        for phase, began in self.entered:
            if last is not None:
                spent[last] = spent.get(last, 0.0) + (began - since)
            last, since = phase, began
        if last is not None:
            spent[last] = spent.get(last, 0.0) + (until - since)
        return spent

    def spent_ms(self, until: float) -> dict[str, float]:
        """The same in ms, to three digits."""
        return {phase: round(took_s * 1000, 3) for phase, took_s in self.spent_s(until).items()}

    def __enter__(self) -> Self:
        if self._interruption is not None:
            raise self._interruption
        self._scope = trio.CancelScope()
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        scope, self._scope = self._scope, None
        if scope is None:
            raise RuntimeError("left without having been entered")
        scope.__exit__(kind, error, traceback)
        if not scope.cancelled_caught:
            return  # whatever it was passes on
        if self._interruption is not None:
            raise self._interruption
        if self.current is not None:
            raise deadline_exceeded(self.current, self.allowed_s(self.current))


def deadline_exceeded(phase: Phase, allowed_s: float) -> DeadlineExceeded:
    """The error that says which phase took longer than it may."""
    return DeadlineExceeded(f"waited {allowed_s:g} s for {WAITING_FOR[phase]} ({phase})", param=phase)
