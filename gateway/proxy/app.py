"""The ASGI application for the inference paths. It reads from here down: request, dispatch, attempt, relay.

One nursery per request. In it run the request itself and, for a stream, the task that sends keep-alives. Where the
server does not report the client's disconnect by a call, a task watches for it. When the nursery closes, everything the
request started is gone.
"""

from __future__ import annotations

import math
from functools import partial

import structlog
import trio

from gateway import errors
from gateway.access.keys import scope as scopes
from gateway.access.keys.key import Key
from gateway.asgi import DirectExchange, Receive, Scope, Send, exchange_of
from gateway.dialects import Dialect
from gateway.dialects.json_splice import locate
from gateway.proxy import total_deadline
from gateway.proxy.accounts.request_account import RequestAccount
from gateway.proxy.body.memory import BodyMemory, BodyReservation
from gateway.proxy.body.off_loop import INLINE_BYTES, off_loop
from gateway.proxy.body.progress import BodyProgress, stalled
from gateway.proxy.context import ProxyContext, shutting_down
from gateway.proxy.count_tokens import CountTokens
from gateway.proxy.dispatch import Dispatch
from gateway.proxy.endpoints import ENDPOINTS, Endpoint
from gateway.proxy.forms.form_request import read_form_request, watch_uploading_client
from gateway.proxy.forms.spool import SpoolStorage
from gateway.proxy.request import (
    InferenceRequest,
    RequestHead,
    head_of,
    new_request_id,
    read_request,
    request_id_of,
)
from gateway.proxy.response import response_headers, server_timing
from gateway.proxy.response.client_response import ClientGone, ClientResponse
from gateway.proxy.response.client_watch import client_left, keep_alive, watch_client
from gateway.proxy.response.keepalive import KeepAlive, SilenceWatch
from gateway.telemetry.request_record import RequestRecord

__all__ = ["KEY_IN_SCOPE", "InferenceApp"]

KEY_IN_SCOPE = "cortex.key"
"""Where the scope has the key of a request that was authenticated already: by the session of the console."""

log = structlog.get_logger("cortex.inference")


class InferenceApp:
    """An ASGI callable, HTTP only.

    Args:
        context: The collaborators of the request path.

    Attributes:
        context: The same.
        body_memory: The memory that request bodies take.
        silence: Starts the keep-alives of silent streams; its owner runs it. Without that each stream has a task.
        spools: The disk space that uploads take.
        refuses_new: The gateway shuts down, and answers new requests with 503.
    """

    def __init__(self, context: ProxyContext) -> None:
        settings = context.settings
        self.context = context
        self.body_memory = BodyMemory(int(settings.limits.bodies_mb * 1024**2))
        self.spools = SpoolStorage(settings.gateway.spool_dir, int(settings.limits.spool_mb * 1024**2))
        self._body_limit_bytes = int(settings.gateway.body_limit_mb * 1024**2)
        self._inline_bytes = min(INLINE_BYTES, self._body_limit_bytes)
        self.refuses_new = False
        self.silence = SilenceWatch()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request until it is answered, or its client has left."""
        context, request_log = self.context, self.context.request_log
        endpoint = ENDPOINTS[scope["path"]]
        headers, exchange = scope["headers"], exchange_of(scope)
        head = head_of(scope, exchange)
        request_id = request_id_of(headers) if head.names_id else new_request_id()
        record = request_log.open(request_id, scope["path"], headers)
        client = server_timing.timed_response(send, record) if head.wants_timing else ClientResponse(send, exchange)
        reservation = BodyReservation(self.body_memory)
        account: RequestAccount | None = None
        try:
            if self.refuses_new or len(request_log.live) > context.settings.limits.requests:
                raise self._no_admission()
            key = scope[KEY_IN_SCOPE] if KEY_IN_SCOPE in scope else context.access.authenticate(headers, exchange)
            if key is not None:
                record.key_id, record.key_name = key.id, key.name
            if context.accounting is not None:
                account = RequestAccount(context.accounting, record, key, endpoint.dialect_name, exchange)
            if endpoint.is_form:
                await self._serve_form(
                    endpoint,
                    scope,
                    receive,
                    client,
                    record,
                    exchange=exchange,
                    key=key,
                    account=account,
                    reservation=reservation,
                )
            else:
                request = self._take(endpoint, exchange, head, record, reservation)
                if request is None:
                    request = await self._read(endpoint, scope, receive, record, reservation)
                request.key, request.account = key, account
                if key is not None and not key.is_unrestricted:
                    context.access.authorize(key, request.model.name)
                await self._serve(endpoint, request, exchange, receive, client, record=record)
        except errors.GatewayError as error:
            await _send_error(client, record, error, endpoint.dialect)
            errors.forget_tracebacks(error)
        except ClientGone:
            record.outcome = "client_disconnected"
        finally:
            reservation.release()
            record.status, record.bytes_out = client.status, client.bytes_sent
            record.sent_first_at = client.first_write_at
            if account is not None:
                account.close()
            request_log.close(record)

    def drain(self, *, refuse_new: bool = True) -> None:
        """Refuse new requests from now on, and those that still wait for a replica: that may take minutes.

        With `refuse_new` False a new request is refused only if it would have to wait.
        """
        self.refuses_new = refuse_new
        self.context.draining.set()
        for record in list(self.context.request_log.live.values()):
            if record.routing.is_waiting:
                record.cancel(shutting_down())

    def cut(self, error: errors.GatewayError) -> None:
        """End every running request; each client gets `error` if its response can still carry it."""
        for record in list(self.context.request_log.live.values()):
            record.cancel(error)

    def cut_key(self, key_id: str, error: errors.GatewayError) -> None:
        """End every running request of one key, as `cut` does."""
        for record in list(self.context.request_log.live.values()):
            if record.key_id == key_id:
                record.cancel(error)

    def _no_admission(self) -> errors.GatewayError:
        if self.refuses_new:
            return shutting_down()
        limit = self.context.settings.limits.requests
        return errors.Overloaded(
            f"this gateway serves at most {limit} requests at a time (limits.requests): try again", retry_after_s=1
        )

    def _take(
        self,
        endpoint: Endpoint,
        exchange: DirectExchange | None,
        head: RequestHead,
        record: RequestRecord,
        reservation: BodyReservation,
    ) -> InferenceRequest | None:
        """As `_read`, if the head is plain, and the body is small and has arrived; else None."""
        body = exchange.take_body(self._inline_bytes) if exchange is not None and head.is_plain else None
        if body is None:
            return None
        size = record.bytes_in = len(body)
        reservation.add(size)
        record.read_at = record.started_at  # it came with the head
        request = InferenceRequest(head.path, head.headers, body, locate(body, record.path), record.request_id, head)
        if head.names_deadline:
            request.total_deadline = total_deadline.of_client(head.headers)
        request.parse(endpoint.dialect, self.context.fleet.neuron_dialects, self.context.secret_key)
        record.stream, record.ignored = request.model.stream, request.parsed.ignored
        return request

    async def _read(
        self, endpoint: Endpoint, scope: Scope, receive: Receive, record: RequestRecord, reservation: BodyReservation
    ) -> InferenceRequest:
        """Read the whole request. Its body must not stall, nor take longer than the client's total deadline."""
        deadline = total_deadline.of_client(scope["headers"])
        allowed_s = self.context.settings.deadlines.upload_seconds
        latest = math.inf if deadline is None else trio.current_time() + deadline.allowed_s
        cancelled_by: list[errors.GatewayError] = []
        with trio.CancelScope(deadline=min(trio.current_time() + allowed_s, latest)) as arrival:
            record.cancel = partial(_cancel_reading, arrival, cancelled_by)
            request = await read_request(
                scope,
                receive,
                record.request_id,
                self._body_limit_bytes,
                reservation,
                progress=BodyProgress(arrival, allowed_s, latest),
            )
            request.total_deadline = deadline
            record.read_at = record.now()
            record.bytes_in = len(request.body)
            dialects, secret_key = self.context.fleet.neuron_dialects, self.context.secret_key
            await off_loop(request.body, partial(request.parse, endpoint.dialect, dialects, secret_key))
            record.stream, record.ignored = request.model.stream, request.parsed.ignored
            return request
        if cancelled_by:
            raise cancelled_by[0]
        if deadline is not None and arrival.deadline == latest:
            raise deadline.exceeded("header", {})
        raise stalled(allowed_s)

    async def _serve_form(
        self,
        endpoint: Endpoint,
        scope: Scope,
        receive: Receive,
        client: ClientResponse,
        record: RequestRecord,
        *,
        exchange: DirectExchange | None,
        key: Key | None,
        account: RequestAccount | None,
        reservation: BodyReservation,
    ) -> None:
        """Serve a multipart form, from when its `model` has arrived. Its temporary file is gone when this returns."""
        stall_timeout_s = self.context.settings.deadlines.upload_seconds
        async with self.spools.open(reservation) as spool:
            request = await read_form_request(
                scope,
                receive,
                spool,
                record,
                body_limit_bytes=self._body_limit_bytes,
                stall_timeout_s=stall_timeout_s,
            )
            try:
                request.key, request.account = key, account
                if key is not None:
                    self.context.access.authorize(key, request.model.name)
                request.parse(endpoint.dialect, self.context.fleet.neuron_dialects, self.context.secret_key)
                await self._serve(endpoint, request, exchange, receive, client, record=record)
            finally:
                if request.upload is not None:
                    record.bytes_in = request.upload.received_bytes

    async def _serve(
        self,
        endpoint: Endpoint,
        request: InferenceRequest,
        exchange: DirectExchange | None,
        receive: Receive,
        client: ClientResponse,
        *,
        record: RequestRecord,
    ) -> None:
        """Open the request's nursery. Errors are handled inside it, so that none comes out as an exception group."""
        dispatch = Dispatch(self.context, request, client, record)
        try:
            async with trio.open_nursery() as nursery:
                keepalive, scope = dispatch.keepalive, nursery.cancel_scope
                dispatch.phases.request_scope = scope
                _watch_client(request, exchange, receive, client, record=record, keepalive=keepalive, nursery=nursery)
                if request.model.stream and keepalive is not None:
                    keepalive.begin()
                    self.silence.watch(keepalive, partial(nursery.start_soon, keep_alive, keepalive, record, scope))
                try:
                    if endpoint.counts:
                        await CountTokens(self.context, request, client, record).run()
                    else:
                        await dispatch.run()
                except errors.GatewayError as error:
                    if request.key is not None and isinstance(error, errors.ModelNotFound):
                        error.hide_names(partial(scopes.allows, request.key.may))
                    await _send_error(client, record, error, request.dialect, dispatch)
                    errors.forget_tracebacks(error)
                except ClientGone:
                    record.outcome = "client_disconnected"
                except Exception:
                    log.exception(
                        "internal_error",
                        request_id=record.request_id,
                        model=record.routing.model,
                        node=record.routing.node,
                    )
                    internal = errors.InternalError("an error inside the gateway; its log has the details")
                    await _send_error(client, record, internal, request.dialect, dispatch)
                finally:
                    if keepalive is not None:
                        self.silence.forget(keepalive)
                if nursery.child_tasks:
                    scope.cancel()
        finally:
            dispatch.release()


def _watch_client(
    request: InferenceRequest,
    exchange: DirectExchange | None,
    receive: Receive,
    client: ClientResponse,
    *,
    record: RequestRecord,
    keepalive: KeepAlive | None,
    nursery: trio.Nursery,
) -> None:
    """Have the server call when the client leaves. For an upload, or without a server that does, start a task."""
    scope = nursery.cancel_scope
    if request.upload is not None:
        watch = partial(watch_uploading_client, request.upload, keepalive=keepalive, nursery=nursery)
        nursery.start_soon(watch, receive, client, record)
    elif exchange is None or not exchange.on_departure(partial(client_left, client, record, scope)):
        nursery.start_soon(watch_client, receive, client, record, scope)


async def _send_error(
    client: ClientResponse,
    record: RequestRecord,
    error: errors.GatewayError,
    dialect: Dialect,
    dispatch: Dispatch | None = None,
) -> None:
    """Send an error response if no status was sent yet, or an error event in a stream.

    Otherwise leave the body unfinished: the server then breaks the connection, and the client notices the error.
    """
    if client.terminator_sent and not error.is_neurons_text:
        record.outcome = "ok"  # the client has the whole answer
        await client.end()
        return
    record.failed(error)
    try:
        if not client.started:
            headers = response_headers.of_gateway(record, [*dialect.headers(record.request_id), *error.headers])
            await client.respond(error.status, headers, dialect.error(error, record.request_id))
        elif record.stream and not client.ended and dispatch is not None:
            await client.end_with_error(dispatch.error_event(error))
    except ClientGone:
        pass


def _cancel_reading(
    scope: trio.CancelScope, cancelled_by: list[errors.GatewayError], error: errors.GatewayError
) -> None:
    cancelled_by.append(error)
    scope.cancel()
