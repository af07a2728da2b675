"""The errand: one request's way from a model's name to the last byte of its answer.

    resolve on one snapshot -> choose a neuron and lease it -> [wait for it] -> attempt -> [another] -> done
                               [or begin again with the model that the alias falls back to]

Which neuron is `routing`'s to say, whose turn it is `admission`'s, what is said to a neuron `attempt`'s, whether one is
asked or two `inquiry`'s. Here is who is asked, how often, and what the client hears if nobody is left.
"""

from __future__ import annotations

import contextlib
from functools import partial
from typing import TYPE_CHECKING

import trio

from catalogue.models import Catalogue
from catalogue.resolve import Resolution, resolve
from gateway import errors
from gateway.asgi import Headers
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.routing import decision_log
from gateway.fleet.routing.choose import Decision, Route, WaitForLoad, WaitForPlace
from gateway.fleet.routing.queue import QueueTicket
from gateway.proxy import response_headers
from gateway.proxy.attempt import Refused, Retriable, pass_on
from gateway.proxy.client_response import ClientResponse
from gateway.proxy.context_length import refuse_if_too_long
from gateway.proxy.hedging.hedged_attempt import Failures, HedgedAttempt
from gateway.proxy.keepalive import KeepAlive
from gateway.proxy.request import InferenceRequest
from gateway.proxy.shadow.shadower import Primary
from gateway.proxy.total_deadline import Budget, of_alias, tightest
from gateway.telemetry.request_record import Record

if TYPE_CHECKING:
    from gateway.proxy.app import Inference

__all__ = ["Dispatch", "shutting_down"]

SHUTTING_DOWN_RETRY_S = 5  # a restart behind a load balancer takes about this long


def shutting_down() -> errors.ShuttingDown:
    """What a draining gateway says to whoever is new, or still waits for a model."""
    return errors.ShuttingDown("this gateway is shutting down", retry_after_s=SHUTTING_DOWN_RETRY_S)


class Dispatch:
    """See above. `run` once."""

    __slots__ = (
        "_answer",
        "_attempts_left",
        "_has_another_model",
        "_inquiry",
        "_record",
        "_request",
        "_shadowed",
        "_shared",
        "pacer",
    )

    def __init__(self, shared: Inference, request: InferenceRequest, answer: ClientResponse, record: Record) -> None:
        self._shared = shared
        self._request = request
        self._answer = answer
        self._record = record
        self._attempts_left = shared.settings.retries.attempts
        self._shadowed: Primary | None = None
        self._has_another_model = False  # to fall back to, should nobody serve the one that is being tried
        self.pacer = KeepAlive(answer, shared.settings.streaming, self._early_head)
        self._inquiry = HedgedAttempt(shared, request, record, self.pacer)

    async def run(self) -> None:
        """Raises whatever `errors` has for it, or ClientGone."""
        catalogue = self._shared.catalogue.current
        resolution = resolve(catalogue, self._request.model.name, self._request.key_of)
        self._record.resolved(resolution, catalogue.generation, self._request.headers)
        self._record.is_unknown_model = not (
            resolution.model in catalogue.models or self._shared.fleet.holders(resolution.model) or resolution.alias
        )
        refuse_if_too_long(self._request, resolution.model, catalogue, self._shared.fleet)
        if resolution.policy is not None and self._shared.shadows is not None:
            self._shadowed = self._shared.shadows.begin(resolution.policy, self._request)
        self._inquiry.policy, self._inquiry.listens = resolution.policy, self._shadowed is not None
        self._record.cancel, self._record.phases = self._inquiry.interrupt, self._inquiry.phases
        budget = tightest(self._request.budget, of_alias(resolution.policy))
        try:
            if budget is None:
                await self._serve(resolution, catalogue)
            else:
                await self._serve_within(budget, resolution, catalogue)
            self._let_shadow_follow()
        finally:
            self._record.phases_ms = self._inquiry.phases.spent_ms(trio.current_time())

    def error_event(self, error: errors.GatewayError) -> bytes:
        """How a stream that has begun ends: by its translation, if that has told something, else by its dialect."""
        attempt = self._inquiry.attempt
        if self._answer.committed and attempt is not None and attempt.translation is not None:
            return attempt.translation.fail(error)
        return self._request.dialect.error_event(error, self._record.request_id)

    async def _serve_within(self, budget: Budget, resolution: Resolution, catalogue: Catalogue) -> None:
        """The same in its time. When that is over everything ends as if the client had left, and says so.

        It is around the attempts, not in their phases: that a client had no time says nothing about a neuron.
        """
        with trio.CancelScope(deadline=self._record.started_at + budget.allowed_s) as scope:
            await self._serve(resolution, catalogue)
        if scope.cancelled_caught:
            phases = self._inquiry.phases
            raise budget.exceeded(phases.current, phases.spent_ms(trio.current_time()))

    def _let_shadow_follow(self) -> None:
        """Of a request that was answered well; what it heard is of no other use."""
        heard = None if self._inquiry.attempt is None else self._inquiry.attempt.heard
        if self._shadowed is not None and heard is not None and self._record.outcome == "ok":
            self._shadowed.answered(heard, self._record.model or "", self._record.node or "")

    async def _serve(self, resolution: Resolution, catalogue: Catalogue) -> None:
        """By the model resolved to, or else by what its alias falls back to; if nobody can, the first's no is told."""
        fallback = () if resolution.policy is None else resolution.policy.fallback
        left = [model for model in fallback if model != resolution.model]
        model: str | None = resolution.model
        first: _Unserved | None = None
        while model is not None:
            self._has_another_model = bool(left)
            try:
                await self._attempt_until_answered(model, catalogue)
            except _Unserved as unserved:
                first = first or unserved
                model = self._next_of(left, catalogue) if self._may_fall_back(unserved) else None
                if model is not None:
                    self._record.falls_back(model, unserved.error)
            else:
                return
        if first is not None:
            await self._tell(first)

    def _next_of(self, left: list[str], catalogue: Catalogue) -> str | None:
        """The next model to fall back to, but for those that cannot take the prompt; it leaves the list with them."""
        while left:
            model = left.pop(0)
            try:
                refuse_if_too_long(self._request, model, catalogue, self._shared.fleet)
            except errors.ContextLengthExceeded as error:
                self._record.passes_over(model, error)
            else:
                return model
        return None

    def _may_fall_back(self, unserved: _Unserved) -> bool:
        """Not from what the client has seen a part of, nor from an end that somebody has put to the request."""
        if (
            self._answer.committed
            or self._inquiry.phases.interrupted
            or isinstance(unserved.error, errors.ShuttingDown)
        ):
            return False
        if not self._request.can_be_sent:
            return False
        return unserved.refusal is not None or isinstance(unserved.error, _CANNOT_SERVE)

    async def _tell(self, unserved: _Unserved) -> None:
        self._record.model, self._record.node = unserved.model, unserved.node
        if unserved.refusal is None:
            raise unserved.error
        await pass_on(unserved.refusal, self._request, self._answer, self._record)

    async def _attempt_until_answered(self, model: str, catalogue: Catalogue) -> None:
        """One neuron after another, within the budget, as long as the client has seen nothing of an answer.

        Raises:
            _Unserved: Nobody is left who could serve this model.
        """
        self._attempts_left = self._shared.settings.retries.attempts
        turn = self._record.turn = self._shared.admission.turn(model, self._record.read_at or self._record.started_at)
        failures = Failures()
        last: Retriable | None = None
        while True:
            try:
                route = await self._find_route(turn, catalogue, failures.on, last)
            except errors.GatewayError as error:
                self._note(error, turn, catalogue, failures.on)
                raise self._unserved(last, failures, error) from error
            try:
                await self._inquiry.ask(route, turn, catalogue, failures)
            except Refused as refused:
                await self._pass_on(refused)
                return
            except Retriable as retriable:
                last = retriable
            else:
                self._shared.note_faulty(failures.suspects)
                return
            if not self._request.can_be_sent:
                last, self._attempts_left = _of_a_spent_upload(last), 0
            if self._attempts_left == 0 or self._answer.committed:
                raise self._unserved(last, failures, last.error)
            self._attempts_left -= 1
            self._record.retried()

    # Finding a neuron...

    async def _find_route(
        self, turn: QueueTicket, catalogue: Catalogue, failed_on: set[str], last: Retriable | None
    ) -> Route:
        decision = _choose(turn, catalogue, failed_on, last)
        if not isinstance(decision, Route):
            if self._shared.draining:
                raise shutting_down()
            self._note(decision, turn, catalogue, failed_on)
            decision = await self._wait_for_route(decision, turn, catalogue, failed_on, last)
        self._note(decision, turn, catalogue, failed_on)
        if self._record.routed_at is None:
            self._record.routed_at = trio.current_time()
        return decision

    def _note(
        self, made: Decision | errors.GatewayError, turn: QueueTicket, catalogue: Catalogue, failed_on: set[str]
    ) -> None:
        """Sync, in the step of the decision: it is of the fleet as it was then."""
        fleet, noted = self._shared.fleet, self._record.choices
        decision_log.note(noted, made, model=turn.model, fleet=fleet, catalogue=catalogue, failed_on=failed_on)

    async def _wait_for_route(
        self, decision: Decision, turn: QueueTicket, catalogue: Catalogue, failed_on: set[str], last: Retriable | None
    ) -> Route:
        """Every place is taken, or the model is being loaded, or will be: wait in line for whichever it is."""
        lifecycle = self._shared.lifecycle
        if self._request.upload is not None:
            self._request.upload.keep_all()
        phases = self._inquiry.phases
        try:
            with phases, turn:
                while not isinstance(decision, Route):
                    if isinstance(decision, WaitForPlace):
                        phases.resume("queue")
                        await turn.wait_for_place()
                    else:
                        phases.resume("load")
                        await turn.wait_for_load(partial(lifecycle.wait_until_routable, decision))
                    decision = _choose(turn, catalogue, failed_on, last)
        except errors.DeadlineExceeded as error:
            raise self._waited_too_long(turn.model, error) from error
        return decision

    def _waited_too_long(self, model: str, error: errors.DeadlineExceeded) -> errors.GatewayError:
        """A load goes on, so its deadline is a "not yet" and says when to ask again. A line only says how it was."""
        if error.param != "load":
            return errors.DeadlineExceeded(f"model '{model}' is busy: {error.message}", param=error.param)
        lifecycle = self._shared.lifecycle
        return errors.ServiceUnavailable(
            f"model '{model}' is still being loaded: {error.message}{lifecycle.earlier_loads(model)}",
            param="load",
            retry_after_s=lifecycle.retry_after_s(model),
        )

    # Nobody is left...

    async def _pass_on(self, refused: Refused) -> None:
        """It is the request that is at fault, and the neuron has said why."""
        if self._answer.started:
            raise refused.error
        await pass_on(refused.refusal, self._request, self._answer, self._record)

    def _unserved(self, last: Retriable | None, failures: Failures, error: errors.GatewayError) -> _Unserved:
        """Nobody is left to ask: why the last one failed goes to the client rather than that nobody is left.

        Not so for a model that was merely gone: then `error` is of its load.
        """
        refusal: UpstreamErrorResponse | None = None
        if last is not None and not last.not_loaded and not isinstance(error, errors.ShuttingDown):
            error = last.error
            if last.refusal is not None and not self._answer.started:
                refusal = failures.shortest
        return _Unserved(error, refusal, self._record.model, self._record.node)

    def _early_head(self) -> tuple[int, Headers]:
        extra = self._request.dialect.headers(self._record.request_id)
        return 200, response_headers.of_early_stream(self._record, extra, undecided=self._has_another_model)


# What another model may be able to do where one could not. A request that is wrong is wrong for both.
_CANNOT_SERVE = (errors.ModelNotFound, errors.ServiceUnavailable, errors.UpstreamError, errors.DeadlineExceeded)


class _Unserved(Exception):
    """Nobody could serve one model: `refusal` is a neuron's own no, where that is what the client would be told."""

    def __init__(
        self, error: errors.GatewayError, refusal: UpstreamErrorResponse | None, model: str | None, node: str | None
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.refusal = refusal
        self.model = model
        self.node = node


def _choose(turn: QueueTicket, catalogue: Catalogue, failed_on: set[str], last: Retriable | None) -> Decision:
    """Another replica if one is left. None is: what then depends on why the last one failed.

    A failure alone makes nobody load the model elsewhere: that takes minutes and may cost others theirs, while whoever
    failed us may be well in a second. A model that is gone (`not loaded`), or whose neuron is down by now, is a model
    that is not loaded, like any other.
    """
    if last is None:
        return turn.choose(catalogue)
    turn.avoids = frozenset() if last.not_loaded else frozenset(failed_on)
    with contextlib.suppress(errors.GatewayError):  # no way without them is no answer yet
        decision = turn.choose(catalogue, failed_on)
        if isinstance(decision, Route | WaitForPlace) or (isinstance(decision, WaitForLoad) and last.refusal is None):
            return decision
    decision = turn.choose(catalogue)
    is_where_it_failed = isinstance(decision, WaitForPlace) or (
        isinstance(decision, Route) and decision.node in failed_on
    )
    if is_where_it_failed and not last.not_loaded:
        raise last.error
    return decision


def _of_a_spent_upload(failure: Retriable) -> Retriable:
    """A neuron that no longer has the model took half the upload: another could be found or loaded for the next try."""
    if not failure.not_loaded:
        return failure
    return Retriable(
        errors.ServiceUnavailable(
            "the model was unloaded while the upload was on its way to it: send it again", retry_after_s=1
        )
    )
