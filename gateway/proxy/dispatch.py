"""Dispatch: from a resolved alias to an answer.

    resolve the alias on one snapshot -> choose a replica -> [wait for one] -> attempt -> [retry] -> [fall back]

Choosing is `fleet/routing`'s, waiting is `route_wait.py`, sending and relaying are `attempt.py`. The features that most
requests do not use are behind one `if` each: `hedging/`, `shadow/`, `fallback.py` and the total deadline.
"""

from __future__ import annotations

import contextlib
from functools import partial

import trio

from catalogue.models import Alias, Catalogue
from catalogue.resolve import resolve
from gateway import errors
from gateway.asgi import Headers
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.route import Route
from gateway.fleet.routing import decision_log
from gateway.fleet.routing.choose import Decision, WaitForLoad, WaitForSlot
from gateway.fleet.routing.queue import QueueTicket
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.proxy import total_deadline
from gateway.proxy.attempt import Attempt
from gateway.proxy.attempt_failures import AttemptFailures, RefusedByUpstream, Retriable
from gateway.proxy.context import ProxyContext, shutting_down
from gateway.proxy.context_length import SMALL_BODY_BYTES, refuse_if_too_long
from gateway.proxy.fallback import Fallbacks, Unserved
from gateway.proxy.hedging.hedged_attempt import HedgedAttempt
from gateway.proxy.request import InferenceRequest
from gateway.proxy.response import response_headers
from gateway.proxy.response.client_response import ClientResponse
from gateway.proxy.response.keepalive import KeepAlive
from gateway.proxy.route_wait import wait_for_route
from gateway.proxy.shadow.shadower import ShadowedRequest
from gateway.proxy.total_deadline import TotalDeadline
from gateway.telemetry.attempt_record import AttemptRecord
from gateway.telemetry.request_record import RequestRecord

__all__ = ["Dispatch"]


class Dispatch:
    """One request on its way. Call `run` once.

    Attributes:
        keepalive: Keeps the client's connection alive while it waits for a stream; None if it can have asked for none.
        phases: The deadlines of what it waits for. The owner of the request's nursery sets their `request_scope`.
    """

    __slots__ = (
        "_attempt",
        "_catalogue",
        "_client",
        "_context",
        "_fallbacks",
        "_policy",
        "_record",
        "_request",
        "_shadow",
        "keepalive",
        "phases",
    )

    _catalogue: Catalogue

    def __init__(
        self, context: ProxyContext, request: InferenceRequest, client: ClientResponse, record: RequestRecord
    ) -> None:
        self._context = context
        self._request = request
        self._client = client
        self._record = record
        self.phases = PhaseDeadlines(context.settings.deadlines, None, record.now)
        self._policy: Alias | None = None
        self._fallbacks: Fallbacks | None = None
        self._shadow: ShadowedRequest | None = None
        self._attempt: Attempt | None = None
        self.keepalive: KeepAlive | None = None
        if request.model.stream or request.upload is not None:
            self.keepalive = KeepAlive(client, context.settings.streaming, self._early_head, record.started_at)

    async def run(self) -> None:
        """Answer the client. Raises GatewayError for an error that the client must get, ClientGone if it left."""
        context, request, record = self._context, self._request, self._record
        catalogue = self._catalogue = context.catalogue.current
        resolution = resolve(catalogue, request.model.name, request.key_of)
        model = resolution.model
        context.request_log.resolved(record, resolution, catalogue.generation, request.headers)
        is_known = resolution.alias or model in catalogue.models or context.fleet.holders(model)
        record.routing.is_unknown_model = not is_known
        if len(request.body) > SMALL_BODY_BYTES:
            await refuse_if_too_long(request, model, catalogue, context.fleet)
        record.cancel, record.phases = self.phases.interrupt, self.phases
        deadline = request.total_deadline
        if resolution.policy is not None:
            self._use_policy(resolution.policy, model)
            deadline = total_deadline.tighter(deadline, total_deadline.of_alias(resolution.policy))
        account, failed = request.account, False
        try:
            if account is not None:
                account.reserve(model, request.model)
            if deadline is not None:
                await self._serve_within(deadline, model)
            elif (unserved := await self._serve_model(model)) is not None:  # as `_serve`, without its frame
                await self._serve_otherwise(unserved)
        except errors.GatewayError:
            failed = True
            raise
        finally:
            if account is not None:
                account.settle(failed=failed)
            # After an answer no step has waited since the end of its exchange.
            ended_at = self.phases.exchanged_at if record.outcome == "ok" else None
            record.phases_ms = self.phases.spent_ms(trio.current_time() if ended_at is None else ended_at)
            if record.routing.ticket is not None:
                record.routing.end_slot()
        if self._shadow is not None:
            self._start_shadow(self._shadow)

    def release(self) -> None:
        """The request has ended: drop what takes much memory, and cycles. A shadow still needs the small body."""
        if self.keepalive is not None:
            self.keepalive.release()
        if self._attempt is not None:
            self._attempt.translation = self._attempt.transcript = None
        if self._shadow is None:
            self._request.release()

    def error_event(self, error: errors.GatewayError) -> bytes:
        """The end of a stream that has begun: the translation's own if the client has seen some of that."""
        attempt = self._attempt
        if self._client.committed and attempt is not None and attempt.translation is not None:
            return attempt.translation.fail(error)
        return self._request.dialect.error_event(error, self._record.request_id)

    async def _serve(self, model: str) -> None:
        if (unserved := await self._serve_model(model)) is not None:
            await self._serve_otherwise(unserved)

    async def _serve_otherwise(self, unserved: Unserved) -> None:
        """By a fallback model, or with the error."""
        if self._fallbacks is not None:
            remaining = await self._fallbacks.serve(unserved, self._serve_model)
            if remaining is None:
                return
            unserved = remaining
        self._record.routing.model, self._record.routing.node = unserved.model, unserved.node
        if unserved.refusal is None:
            raise unserved.error
        await self._send_upstream_error(unserved.refusal)

    async def _serve_model(self, model: str) -> Unserved | None:
        """Try the replicas of one model until one answers, or the retries are used up.

        Returns None once the client is answered, else why it is not; then it has seen nothing of an answer.
        """
        context, routing = self._context, self._record.routing
        failures, last = AttemptFailures(), None
        retries_left = context.settings.retries.attempts
        now = self._record.now()
        plain = context.admission.plain_route(model, self._catalogue, routing.decisions, now)
        while True:
            try:
                route, now = (plain, now) if plain is not None else await self._next_route(model, failures, last)
            except errors.GatewayError as error:
                self._log_decision(error, model, failures)
                errors.forget_tracebacks(error)  # it may be that of `last`
                return self._unserved(last, failures, error)
            attempt = self._attempt = self._new_attempt(
                route, routing.start_attempt(model, route.node, now), self.phases, failures
            )
            policy = self._policy
            try:
                if policy is None or policy.hedge is None:
                    await attempt.run()
                else:
                    await self._run_hedged(policy, attempt, self._ticket(model, was_admitted=True), failures)
            except RefusedByUpstream as refused:
                await self._send_refusal(refused)
                return None
            except Retriable as failure:
                last = failure
                errors.forget_tracebacks(failure)
            else:
                # Another replica answered the same request, so the request was not what those that failed broke over.
                for suspect, reason in failures.suspects:
                    context.fleet.at_fault(suspect.node, suspect.model_id, reason, suspect.url)
                return None
            if not self._request.can_be_sent:
                last, retries_left = _after_upload(last), 0
            if retries_left == 0 or self._client.committed:
                return self._unserved(last, failures, last.error)
            plain = None
            retries_left -= 1
            routing.retried()

    async def _next_route(self, model: str, failures: AttemptFailures, last: Retriable | None) -> tuple[Route, float]:
        """A route, and the time. Take the lease on it before the next checkpoint.

        Raises:
            GatewayError: No replica can serve the request.
        """
        ticket = self._ticket(model, was_admitted=last is not None)
        route = _choose(ticket, self._catalogue, failures, last)
        if not isinstance(route, Route):
            route = await self._wait_for_route(route, ticket, failures, last)
        self._log_decision(route, model, failures)
        ticket.was_admitted = True
        return route, trio.current_time()

    def _ticket(self, model: str, *, was_admitted: bool) -> QueueTicket:
        """The request's ticket for the model."""
        record, routing = self._record, self._record.routing
        if routing.ticket is None:
            since = record.read_at or record.started_at
            routing.ticket = self._context.admission.ticket(model, since, self._request.key)
            routing.ticket.was_admitted = was_admitted
        return routing.ticket

    def _new_attempt(
        self, route: Route, attempt_record: AttemptRecord, phases: PhaseDeadlines, failures: AttemptFailures
    ) -> Attempt:
        return Attempt(
            self._context,
            self._request,
            self._record,
            self._client,
            self.keepalive,
            route,
            attempt_record,
            phases,
            failures,
            self._policy,
            self._shadow is not None,
        )

    async def _send_refusal(self, refused: RefusedByUpstream) -> None:
        if self._client.started:  # an early 200
            raise refused.error
        await self._send_upstream_error(refused.refusal)

    async def _send_upstream_error(self, refusal: UpstreamErrorResponse) -> None:
        """Answer the client with a neuron's error response: its status, headers and text, in the client's dialect."""
        record, dialect = self._record, self._request.dialect
        record.outcome, record.upstream_status = "upstream_error", refusal.status
        content_type, body = dialect.upstream_error(refusal, record.request_id)
        extra, also = dialect.headers(record.request_id), self._context.settings.gateway.pass_headers
        headers = response_headers.of_upstream_error(refusal.headers, record, extra, content_type, also)
        await self._client.respond(refusal.status, headers, body)

    def _log_decision(self, decision: Decision | errors.GatewayError, model: str, failures: AttemptFailures) -> None:
        """Call it in the step of the decision: it looks at the fleet as it is now."""
        decision_log.note_decision(
            self._record.routing.decisions,
            decision,
            model=model,
            fleet=self._context.fleet,
            catalogue=self._catalogue,
            failed_on=failures.nodes,
        )

    def _unserved(self, last: Retriable | None, failures: AttemptFailures, error: errors.GatewayError) -> Unserved:
        """The last failure tells the client more than that no replica is left.

        Not if the model was merely unloaded there: then `error` is about loading it.
        """
        refusal: UpstreamErrorResponse | None = None
        if last is not None and not last.not_loaded and not isinstance(error, errors.ShuttingDown):
            error = last.error
            if last.refusal is not None and not self._client.started:
                refusal = failures.shortest_retry
        return Unserved(error, refusal, self._record.routing.model, self._record.routing.node)

    def _early_head(self) -> tuple[int, Headers]:
        extra = self._request.dialect.headers(self._record.request_id)
        may_fall_back = self._fallbacks is not None and bool(self._fallbacks.models)
        return 200, response_headers.of_early_stream(self._record, extra, may_fall_back=may_fall_back)

    # Not needed by most requests...

    def _use_policy(self, policy: Alias, model: str) -> None:
        """The alias does more than name a model."""
        context, request = self._context, self._request
        self._policy = policy
        if policy.shadow is not None and context.shadows is not None:
            self._shadow = context.shadows.begin(policy, request)
        models = [fallback for fallback in policy.fallback if fallback != model]
        if models:
            self._fallbacks = Fallbacks(
                models, request, self._client, self._record, catalogue=self._catalogue, fleet=context.fleet
            )

    async def _serve_within(self, deadline: TotalDeadline, model: str) -> None:
        """The scope is outside the attempts and their phases: a client's short deadline is no fault of a neuron."""
        with trio.CancelScope(deadline=self._record.started_at + deadline.allowed_s) as scope:
            await self._serve(model)
        if scope.cancelled_caught:
            raise deadline.exceeded(self.phases.current, self.phases.spent_ms(trio.current_time()))

    async def _wait_for_route(
        self, decision: Decision, ticket: QueueTicket, failures: AttemptFailures, last: Retriable | None
    ) -> Route:
        if self._context.draining.is_set():
            raise shutting_down()
        self._log_decision(decision, ticket.model, failures)
        choose_again = partial(_choose, ticket, self._catalogue, failures, last)
        return await wait_for_route(
            self._context,
            self._request,
            self.phases,
            ticket,
            keepalive=self.keepalive,
            decision=decision,
            choose_again=choose_again,
        )

    async def _run_hedged(
        self, policy: Alias, attempt: Attempt, ticket: QueueTicket, failures: AttemptFailures
    ) -> None:
        hedged = HedgedAttempt(
            self._context,
            policy,
            self._request,
            self._record,
            attempt,
            ticket=ticket,
            catalogue=self._catalogue,
            failures=failures,
            new_attempt=self._new_attempt,
        )
        try:
            await hedged.run()
        finally:
            self._attempt, self.phases = hedged.attempt, hedged.attempt.phases

    def _start_shadow(self, shadow: ShadowedRequest) -> None:
        transcript = None if self._attempt is None else self._attempt.transcript
        if transcript is not None and self._record.outcome == "ok":
            shadow.answered(transcript, self._record.routing.model or "", self._record.routing.node or "")


def _choose(ticket: QueueTicket, catalogue: Catalogue, failures: AttemptFailures, last: Retriable | None) -> Decision:
    """A replica that has not failed this request, if there is one. Otherwise it depends on the last failure.

    A failure alone is no reason to load the model elsewhere: a load takes minutes and may evict other models, while the
    neuron that failed may recover in a second. But a neuron that no longer has the model, or is down by now, is like
    one that never had it.

    Raises:
        GatewayError: No replica can serve the request.
    """
    if last is None:
        return ticket.choose(catalogue)
    ticket.avoided_nodes = frozenset() if last.not_loaded else failures.nodes
    with contextlib.suppress(errors.GatewayError):  # the decision without the failed neurons is not final
        decision = ticket.choose(catalogue, failures.nodes)
        if isinstance(decision, Route | WaitForSlot) or (isinstance(decision, WaitForLoad) and last.refusal is None):
            return decision
    decision = ticket.choose(catalogue)
    only_failed_ones = isinstance(decision, WaitForSlot) or (
        isinstance(decision, Route) and decision.node in failures.nodes
    )
    if only_failed_ones and not last.not_loaded:
        raise last.error
    return decision


def _after_upload(failure: Retriable) -> Retriable:
    """The failure of an attempt after which the upload cannot be sent again."""
    if not failure.not_loaded:
        return failure
    return Retriable(
        errors.ServiceUnavailable(
            "the model was unloaded while the upload was being sent to it: send the request again", retry_after_s=1
        )
    )
