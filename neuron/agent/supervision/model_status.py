"""The states of a model and their transitions, and when a crashed engine is restarted. Pure."""

from __future__ import annotations

from collections import deque
from enum import StrEnum

__all__ = ["TRANSITIONS", "CrashHistory", "ModelStatus", "check_transition"]

FIRST_RESTART_S = 1.0
LONGEST_RESTART_S = 60.0


class ModelStatus(StrEnum):
    """As `GET /models` reports it."""

    UNLOADED = "unloaded"
    LOADING = "loading"
    LOADED = "loaded"
    RECOVERING = "recovering"
    POISONED = "poisoned"
    ASLEEP = "asleep"
    UNLOADING = "unloading"

    @property
    def reported(self) -> str:
        """The value in the API, which has none for a model that is being unloaded: not routable, soon another one."""
        return "recovering" if self is ModelStatus.UNLOADING else self.value


_S = ModelStatus
TRANSITIONS: dict[ModelStatus, frozenset[ModelStatus]] = {
    _S.UNLOADED: frozenset({_S.LOADING}),
    _S.LOADING: frozenset({_S.LOADED, _S.UNLOADED, _S.UNLOADING, _S.ASLEEP}),
    _S.LOADED: frozenset({_S.RECOVERING, _S.UNLOADING}),
    _S.RECOVERING: frozenset({_S.LOADED, _S.RECOVERING, _S.POISONED, _S.UNLOADING}),
    _S.POISONED: frozenset({_S.UNLOADED}),
    _S.ASLEEP: frozenset({_S.LOADING, _S.UNLOADING}),
    _S.UNLOADING: frozenset({_S.UNLOADED, _S.ASLEEP}),
}


def check_transition(before: ModelStatus, after: ModelStatus) -> None:
    """Raises RuntimeError for a transition that must not happen: a bug in the neuron."""
    if after not in TRANSITIONS[before]:
        raise RuntimeError(f"a model must not go from {before} to {after}")


class CrashHistory:
    """The crashes of one model since its load or its last operator action.

    Args:
        max_restarts: How many crashes within the window are answered with a restart.
        window_s: The window.
    """

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self._max_restarts = max_restarts
        self._window_s = window_s
        self._crashes: deque[float] = deque()

    def record(self, now_s: float) -> float | None:
        """A crash at this time: seconds until the restart, doubled with each crash in the window; None for no more."""
        self._crashes.append(now_s)
        while self._crashes[0] <= now_s - self._window_s:
            self._crashes.popleft()
        if len(self._crashes) > self._max_restarts:
            return None
        delay: float = FIRST_RESTART_S * 2 ** (len(self._crashes) - 1)
        return min(delay, LONGEST_RESTART_S)
