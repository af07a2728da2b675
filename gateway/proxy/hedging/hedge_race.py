"""Two attempts at one request: the one that has a token first answers, and the other one is cancelled.

    first ----------------------- first token: it answers; the second is cancelled, or never sent
      +-- delay ---> second ----- first token: it answers; the first is cancelled

One synchronous claim decides which attempt answers (docs/decisions/0009-hedging.md). Both run in the nursery of `run`,
so neither outlives the request. If one fails, the other goes on.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from gateway import errors
from gateway.proxy.attempt import Attempt
from gateway.proxy.attempt_failures import RefusedByUpstream, Retriable
from gateway.proxy.response.client_response import ClientGone
from gateway.telemetry.request_record import RequestRecord

__all__ = ["Race"]


class Race:
    """Call `run` once.

    Args:
        record: The request's record.
        delay_s: How long the first attempt runs alone.
        first: The first attempt, not yet run.
        make_second: Chooses the second replica in the step in which the second attempt starts; None for no attempt.
        on_win: Called with the attempt that answers, in the step in which that is decided.
    """

    def __init__(
        self,
        record: RequestRecord,
        delay_s: float,
        first: Attempt,
        *,
        make_second: Callable[[], Attempt | None],
        on_win: Callable[[Attempt], None],
    ) -> None:
        self._record = record
        self._delay_s = delay_s
        self._first = first
        self._make_second = make_second
        self._on_win = on_win
        self._second: Attempt | None = None
        self._first_scope, self._second_scope = trio.CancelScope(), trio.CancelScope()
        self._winner: Attempt | None = None
        self._errors: dict[Attempt, Exception] = {}
        first.claim = self._claim

    async def run(self) -> None:
        """Return when one attempt has answered and the other one has ended.

        Raises:
            Retriable, RefusedByUpstream, GatewayError, ClientGone: The error of the attempt that began to answer; if
                neither did, the error that is more useful to the client.
        """
        record = self._record
        record.routing.is_contested = True
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._run_second_after_delay)
                with self._first_scope:
                    await self._run(self._first)
                if self._second is None:
                    self._second_scope.cancel()
        finally:
            record.routing.is_contested = False
            self._first.claim = None  # it refers to this race: a cycle
            if self._second is not None:
                record.routing.hedge = self._result(self._second)
                self._second.claim = None
        error = self._errors.get(self._winner) if self._winner is not None else self._more_useful_error()
        if error is not None:
            raise error

    def _claim(self, attempt: Attempt) -> bool:
        """Whether `attempt` is the one that answers: the first one to ask. It cancels the other attempt.

        Synchronous, so two attempts that have their first token in the same moment ask one after the other.
        """
        if self._winner is None:
            self._winner = attempt
            self._record.routing.is_contested = False
            if attempt is not self._first:
                self._first.attempt_record.lost()
                self._first_scope.cancel()
            else:
                if self._second is not None:
                    self._second.attempt_record.lost()
                self._second_scope.cancel()  # also if the second attempt has not started
            self._on_win(attempt)
        return self._winner is attempt

    async def _run_second_after_delay(self) -> None:
        with self._second_scope:
            await trio.sleep(self._delay_s)
            second = self._second = self._make_second()
            if second is not None:
                second.claim = self._claim
                await self._run(second)

    async def _run(self, attempt: Attempt) -> None:
        """Keep the error: raised here it would cancel the other attempt."""
        try:
            await attempt.run()
        except (Retriable, RefusedByUpstream, errors.GatewayError, ClientGone) as error:
            self._errors[attempt] = error
            errors.forget_tracebacks(error)  # they have this frame

    def _result(self, second: Attempt) -> str:
        if self._winner is second:
            return "won"
        if second in self._errors:
            return "failed"
        return "lost" if self._winner is self._first else "cancelled"

    def _more_useful_error(self) -> Exception | None:
        first = self._errors.get(self._first)
        second = None if self._second is None else self._errors.get(self._second)
        return first if _usefulness(first) >= _usefulness(second) else second


def _usefulness(error: Exception | None) -> int:
    """How much a client learns from the error."""
    if error is None:
        return -1
    if isinstance(error, RefusedByUpstream):
        return 4  # what is wrong with the request
    if not isinstance(error, Retriable):
        return 0  # only that the request could not be sent
    if error.refusal is not None:
        return 3  # that the neuron is busy, and for how long
    return 1 if error.not_loaded else 2
