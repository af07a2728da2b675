"""The data plane: a plain ASGI callable for the inference paths. Reads like the story of a request.

    read -> resolve the alias on one snapshot -> choose a neuron and lease it -> rewrite `model` -> ask -> relay
         -> record once

One nursery per request. In it: the request itself, a watcher for the client's leaving (which first reads what is left
of an upload), and for streams a pacer. When it closes, everything the request started is gone, whatever the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import structlog
import trio

from catalogue.source import CatalogueSource
from gateway import errors
from gateway.asgi import Receive, Scope, Send
from gateway.config.settings import Settings
from gateway.dialects import Dialect
from gateway.fleet.routing.choose import Decision, Route
from gateway.fleet.routing.queue import Admission
from gateway.fleet.state import Fleet
from gateway.http.pool import UpstreamPool
from gateway.proxy import response_headers, server_timing, total_deadline
from gateway.proxy.attempt import Retriable
from gateway.proxy.body_memory import BodyMemory, BodyReservation
from gateway.proxy.client_response import ClientGone, ClientResponse
from gateway.proxy.count_tokens import Count
from gateway.proxy.dispatch import Dispatch, shutting_down
from gateway.proxy.endpoints import ENDPOINTS, Endpoint
from gateway.proxy.forms.spool import SpoolStorage
from gateway.proxy.forms.upload import Upload
from gateway.proxy.hedging.hedge_policy import Hedging
from gateway.proxy.keepalive import KeepAlive
from gateway.proxy.request import InferenceRequest, open_upload, read, read_form, request_id_of
from gateway.proxy.shadow.shadower import Shadows
from gateway.telemetry.request_log import Accounts
from gateway.telemetry.request_record import Record

__all__ = ["Inference"]

# For the neuron to end the body of a stream whose terminator is out already and whose client has left on it. Mostly the
# end is on its way, and the connection can be used again.
LAST_BYTES_S = 1.0

log = structlog.get_logger("cortex.inference")


class Lifecycle(Protocol):
    """Whoever can make a model become loaded."""

    async def wait_until_routable(self, decision: Decision) -> None:
        """Return when it is worth choosing again. Raises a GatewayError if it never will be."""
        ...

    def retry_after_s(self, model: str) -> int:
        """When to ask again for a model that is being loaded, in whole seconds."""
        ...

    def earlier_loads(self, model: str) -> str:
        """How long loads of the model took before, as the rest of a sentence; empty if nobody knows."""
        ...


class Inference:
    """Everything the requests share. An ASGI callable; HTTP only."""

    def __init__(
        self,
        settings: Settings,
        *,
        catalogue: CatalogueSource,
        fleet: Fleet,
        upstream: UpstreamPool,
        accounts: Accounts,
        poll_soon: Callable[[str], None],
        lifecycle: Lifecycle,
        shadows: Shadows | None = None,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.fleet = fleet
        self.upstream = upstream
        self.accounts = accounts
        self.poll_soon = poll_soon
        self.lifecycle = lifecycle
        self.shadows = shadows
        self.hedging = Hedging(accounts.metrics)
        self.admission = Admission(fleet, catalogue=catalogue, limit=settings.limits.queue)
        self.draining = False
        self.bodies = BodyMemory(int(settings.limits.bodies_mb * 1024**2))
        self.spools = SpoolStorage(settings.gateway.spool_dir, int(settings.limits.spool_mb * 1024**2))
        self._body_limit_bytes = int(settings.gateway.body_limit_mb * 1024**2)
        self._spoken: frozenset[str] = frozenset().union(*(node.backend.dialects for node in fleet.nodes.values()))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, to its end or its client's."""
        endpoint = ENDPOINTS[scope["path"]]
        with self.accounts.open(request_id_of(scope["headers"]), scope["path"]) as record:
            answer = _answer(scope, send, record)
            try:
                self._admit()
                if endpoint.is_form:
                    await self._serve_form(endpoint, scope, receive, answer, record)
                else:
                    with self.bodies.reservation() as reservation:
                        request = await self._read(endpoint, scope, receive, record, reservation)
                        await self._serve(endpoint, request, receive, answer, record)
            except errors.GatewayError as error:
                await _refuse(answer, record, error, endpoint.dialect)
            except ClientGone:
                record.outcome = "client_disconnected"
            finally:
                record.status, record.bytes_out = answer.status, answer.bytes_sent
                record.sent_first_at = answer.first_write_at

    def drain(self) -> None:
        """From now on refuse what is new, and what still waits for a model or a place: that may take minutes."""
        self.draining = True
        for record in list(self.accounts.live.values()):
            if record.is_waiting:
                record.cancel(shutting_down())

    def cut(self, error: errors.GatewayError) -> None:
        """End everything that runs, each client with `error` in the form it can still take."""
        for record in list(self.accounts.live.values()):
            record.cancel(error)

    def note_failure(self, route: Route, failure: Retriable) -> None:
        """What a failed attempt says about the neuron, for the requests after this one."""
        if failure.not_loaded:
            self.fleet.dropped(route.node, route.model_id)
        elif failure.unreachable:
            self.fleet.failed(route.node, failure.error.message)
        elif failure.refusal is not None and failure.refusal.retry_after_s is not None:
            self.fleet.busy(route.node, route.model_id, failure.refusal.retry_after_s)
        self.poll_soon(route.node)

    def note_faulty(self, suspects: Sequence[tuple[Route, str]]) -> None:
        """Another neuron has answered what these could not: so it was not the request that was at fault."""
        for route, reason in suspects:
            self.fleet.at_fault(route.node, reason)

    def _admit(self) -> None:
        if self.draining:
            raise shutting_down()
        if len(self.accounts.live) > self.settings.limits.requests:
            raise errors.Overloaded(
                f"this gateway serves at most {self.settings.limits.requests} requests at a time", retry_after_s=1
            )

    async def _read(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, record: Record, reservation: BodyReservation
    ) -> InferenceRequest:
        allowed = total_deadline.asked_by_client(scope["headers"])
        deadline_s = self.settings.deadlines.header_seconds
        with trio.move_on_after(deadline_s if allowed is None else min(deadline_s, allowed.allowed_s)) as arrival:
            interruptions: list[errors.GatewayError] = []
            record.cancel = partial(_interrupt, arrival, interruptions)
            request = await read(scope, receive, record.request_id, self._body_limit_bytes, reservation)
            request.budget = allowed
            record.read_at = trio.current_time()
            record.bytes_in = len(request.body)
            request.understand(endpoint.dialect, self._spoken)
            record.stream = request.stream
            return request
        if interruptions:
            raise interruptions[0]
        if allowed is not None and allowed.allowed_s < deadline_s:
            raise allowed.exceeded("header", {})
        raise errors.RequestTimeout(f"the request did not arrive within {deadline_s:g} s")

    async def _serve_form(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, answer: ClientResponse, record: Record
    ) -> None:
        """As any request, but begun as soon as its `model` has come. What is kept of it is gone when this returns."""
        stall_timeout_s = self.settings.deadlines.upload_seconds
        with self.bodies.reservation() as reservation:
            async with self.spools.open(reservation) as spool:
                limit_bytes = self._body_limit_bytes
                upload = open_upload(
                    scope, receive, spool, body_limit_bytes=limit_bytes, stall_timeout_s=stall_timeout_s
                )
                try:
                    request = await self._read_form(scope, upload, record)
                    request.understand(endpoint.dialect, self._spoken)
                    await self._serve(endpoint, request, receive, answer, record)
                finally:
                    record.bytes_in = upload.received_bytes

    async def _read_form(self, scope: Scope, upload: Upload, record: Record) -> InferenceRequest:
        """Read as far as routing needs. That may take long: it has no deadline but the client's own, if it has one."""
        allowed = total_deadline.asked_by_client(scope["headers"])
        if allowed is None:
            request = await read_form(scope, upload, record.request_id)
        else:
            with trio.move_on_after(allowed.allowed_s) as scope_of_all:
                request = await read_form(scope, upload, record.request_id)
            if scope_of_all.cancelled_caught:
                raise allowed.exceeded("header", {})
        request.budget = allowed
        record.read_at = trio.current_time()
        return request

    async def _serve(
        self, endpoint: Endpoint, request: InferenceRequest, receive: Receive, answer: ClientResponse, record: Record
    ) -> None:
        """The request's nursery. Errors are dealt with inside it, so that no exception group needs taking apart."""
        async with trio.open_nursery() as nursery:
            errand = Dispatch(self, request, answer, record)
            if request.upload is None:
                nursery.start_soon(_watch_the_client, receive, answer, record, nursery.cancel_scope)
            else:
                nursery.start_soon(_take_the_rest, request.upload, receive, record, errand.pacer, nursery)
            if request.stream:
                nursery.start_soon(_pace, errand.pacer, record, nursery.cancel_scope)
            try:
                await (Count(self, request, answer, record) if endpoint.counts else errand).run()
            except errors.GatewayError as error:
                await _refuse(answer, record, error, request.dialect, errand)
            except ClientGone:
                record.outcome = "client_disconnected"
            except Exception:
                log.exception("internal_error", request_id=record.request_id, model=record.model, node=record.node)
                ours = errors.InternalError("an error inside the gateway; its log has more")
                await _refuse(answer, record, ours, request.dialect, errand)
            nursery.cancel_scope.cancel()


def _answer(scope: Scope, send: Send, record: Record) -> ClientResponse:
    if not server_timing.wanted(scope["headers"]):
        return ClientResponse(send)
    return server_timing.TimedAnswer(send, lambda: server_timing.summary(record, trio.current_time()))


async def _refuse(
    answer: ClientResponse, record: Record, error: errors.GatewayError, dialect: Dialect, errand: Dispatch | None = None
) -> None:
    """Tell the client: a proper status if nothing is out yet, an error event in a stream, else a broken body.

    Returning with the body unfinished makes the server break the connection: better than a false end.
    """
    if answer.terminator_sent:
        record.outcome = "ok"  # whatever it is, the client has its answer and the word that it is over
        await answer.end()
        return
    record.failed(error)
    try:
        if not answer.started:
            headers = response_headers.of_ours(record, [*dialect.headers(record.request_id), *error.headers])
            await answer.respond(error.status, headers, dialect.error(error, record.request_id))
        elif record.stream and not answer.ended and errand is not None:
            await answer.end_with_error(errand.error_event(error))
    except ClientGone:
        pass


def _interrupt(scope: trio.CancelScope, interruptions: list[errors.GatewayError], error: errors.GatewayError) -> None:
    interruptions.append(error)
    scope.cancel()


async def _watch_the_client(receive: Receive, answer: ClientResponse, record: Record, scope: trio.CancelScope) -> None:
    """From the moment the request is read until its end: when the client leaves, everything else stops."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if answer.ending:
        return  # a server says `disconnect` after a complete response too (ASGI); nothing is left to stop
    if answer.terminator_sent:
        record.outcome = "ok"
        scope.deadline = trio.current_time() + LAST_BYTES_S
        return
    record.outcome = "client_disconnected"
    scope.cancel()


async def _take_the_rest(
    upload: Upload, receive: Receive, record: Record, pacer: KeepAlive, nursery: trio.Nursery
) -> None:
    """As `_watch_the_client`, for a client that is not done sending; what is wrong with the rest ends the errand."""
    try:
        await upload.run()
    except errors.GatewayError as error:
        record.cancel(error)
        return
    except ClientGone:
        if not pacer.client.ending:  # as above: after an early answer this is no news
            record.outcome = "client_disconnected"
            nursery.cancel_scope.cancel()
        return
    if upload.stream and not pacer.client.started:
        record.stream = True
        nursery.start_soon(_pace, pacer, record, nursery.cancel_scope)  # not sooner: few clients listen while they send
    await _watch_the_client(receive, pacer.client, record, nursery.cancel_scope)


async def _pace(pacer: KeepAlive, record: Record, scope: trio.CancelScope) -> None:
    try:
        await pacer.run()
    except ClientGone:
        record.outcome = "client_disconnected"
        scope.cancel()
