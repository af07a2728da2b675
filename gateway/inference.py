"""The data plane: a plain ASGI callable for the inference paths. Reads like the story of a request.

    read -> resolve the alias on one snapshot -> choose a neuron and lease it -> rewrite `model` -> ask -> relay
         -> record once

One nursery per request. In it: the request itself, a watcher for the client's leaving, and for streams a pacer. When
it closes, everything the request started is gone, whatever the reason.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Protocol

import structlog
import trio

from catalogue.models import Catalogue
from catalogue.resolve import resolve
from gateway import errors, relay
from gateway.accounting import Accounts, Record
from gateway.asgi import Headers, Receive, Scope, Send
from gateway.fleet import Fleet
from gateway.metering import BodyMeter, StreamMeter
from gateway.phases import Phases
from gateway.refusal import Refusal
from gateway.relay import Answer, ClientGone, Pacer
from gateway.request import HOP_BY_HOP, InferenceRequest, named_by_connection, outgoing_headers, read, request_id_of
from gateway.rewrite import splice
from gateway.routing import Decision, Route, WaitForLoad, choose
from gateway.settings import Settings
from gateway.upstream import Origin, Response, Upstream, request_head

__all__ = ["CatalogueSource", "Inference"]

SHUTTING_DOWN_RETRY_S = 5  # a restart behind a load balancer takes about this long

log = structlog.get_logger("cortex.inference")


class CatalogueSource(Protocol):
    """Whoever holds the catalogue in force."""

    @property
    def current(self) -> Catalogue:
        """The snapshot to resolve by; a request takes it once and keeps it."""
        ...


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
        upstream: Upstream,
        accounts: Accounts,
        poke: Callable[[str], None],
        lifecycle: Lifecycle,
    ) -> None:
        self.settings = settings
        self.catalogue = catalogue
        self.fleet = fleet
        self.upstream = upstream
        self.accounts = accounts
        self.poke = poke
        self.lifecycle = lifecycle
        self.draining = False
        self._body_limit_bytes = int(settings.gateway.body_limit_mb * 1024**2)
        self._origins: dict[str, Origin] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, to its end or its client's."""
        answer = Answer(send)
        with self.accounts.open(request_id_of(scope["headers"]), scope["path"]) as record:
            try:
                request = await self._read(scope, receive, record)
                await self._serve(request, receive, answer, record)
            except errors.GatewayError as error:
                await self._refuse(answer, record, error)
            except ClientGone:
                record.outcome = "client_disconnected"
            finally:
                record.status, record.bytes_out = answer.status, answer.bytes_sent
                record.sent_first_at = answer.first_written_at

    def drain(self) -> None:
        """From now on refuse what is new, and what still waits for a model: that may take minutes."""
        self.draining = True
        for record in list(self.accounts.live.values()):
            if record.node is None:
                record.cancel(_shutting_down())

    def cut(self, error: errors.GatewayError) -> None:
        """End everything that runs, each client with `error` in the form it can still take."""
        for record in list(self.accounts.live.values()):
            record.cancel(error)

    async def _read(self, scope: Scope, receive: Receive, record: Record) -> InferenceRequest:
        if self.draining:
            raise _shutting_down()
        if len(self.accounts.live) > self.settings.limits.requests:
            raise errors.Overloaded(
                f"this gateway serves at most {self.settings.limits.requests} requests at a time", retry_after_s=1
            )
        deadline_s = self.settings.deadlines.header_seconds
        with trio.move_on_after(deadline_s):
            request = await read(scope, receive, record.request_id, self._body_limit_bytes)
            record.read_at = trio.current_time()
            record.stream = request.stream
            record.bytes_in = len(request.body)
            return request
        raise errors.RequestTimeout(f"the request did not arrive within {deadline_s:g} s")

    async def _serve(self, request: InferenceRequest, receive: Receive, answer: Answer, record: Record) -> None:
        """The request's nursery. Errors are dealt with inside it, so that no exception group needs taking apart."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_watch_the_client, receive, answer, record, nursery.cancel_scope)
            errand = Errand(self, request, answer, record)
            if request.stream:
                nursery.start_soon(_pace, errand.pacer, record, nursery.cancel_scope)
            try:
                await errand.run()
            except errors.GatewayError as error:
                await self._refuse(answer, record, error)
            except ClientGone:
                record.outcome = "client_disconnected"
            except Exception:
                log.exception("internal_error", request_id=record.request_id, model=record.model, node=record.node)
                await self._refuse(
                    answer, record, errors.InternalError("an error inside the gateway; its log has more")
                )
            nursery.cancel_scope.cancel()

    async def _refuse(self, answer: Answer, record: Record, error: errors.GatewayError) -> None:
        """Tell the client: a proper status if nothing is out yet, an error event in a stream, else a broken body.

        Returning with the body unfinished makes the server break the connection: better than a false end.
        """
        record.failed(error)
        try:
            if not answer.started:
                headers = _plain_headers(record, error.retry_after_s)
                await answer.respond(error.status, headers, errors.envelope(error))
            elif record.stream and not answer.ended:
                await answer.fail(errors.envelope(error))
        except ClientGone:
            pass

    def origin(self, url: str) -> Origin:
        """A neuron's inference URL taken apart, once. The URLs are few: they come from neurons, not from clients."""
        origin = self._origins.get(url)
        if origin is None:
            if len(self._origins) > 10_000:
                self._origins.clear()
            try:
                origin = self._origins[url] = Origin.parse(url)
            except ValueError as error:
                raise errors.UpstreamMalformedResponse(f"the neuron's inference URL is {error}") from error
        return origin


def _shutting_down() -> errors.ShuttingDown:
    return errors.ShuttingDown("this gateway is shutting down", retry_after_s=SHUTTING_DOWN_RETRY_S)


async def _watch_the_client(receive: Receive, answer: Answer, record: Record, scope: trio.CancelScope) -> None:
    """From the moment the request is read until its end: when the client leaves, everything else stops."""
    while (await receive())["type"] != "http.disconnect":
        pass
    if answer.ending:
        return  # a server says `disconnect` after a complete response too (ASGI); nothing is left to stop
    record.outcome = "client_disconnected"
    scope.cancel()


async def _pace(pacer: Pacer, record: Record, scope: trio.CancelScope) -> None:
    try:
        await pacer.run()
    except ClientGone:
        record.outcome = "client_disconnected"
        scope.cancel()


class Errand:
    """One request's way from a model's name to the last byte of its answer."""

    __slots__ = ("_answer", "_attempts_left", "_phases", "_record", "_request", "_shared", "_shortest", "pacer")

    def __init__(self, shared: Inference, request: InferenceRequest, answer: Answer, record: Record) -> None:
        self._shared = shared
        self._request = request
        self._answer = answer
        self._record = record
        self._attempts_left = shared.settings.retries.attempts
        self._phases = Phases(shared.settings.deadlines)
        self._shortest: Refusal | None = None
        self.pacer = Pacer(answer, shared.settings.streaming, self._early_head)

    async def run(self) -> None:
        """Raises whatever `errors` has for it, or ClientGone."""
        catalogue = self._shared.catalogue.current
        resolution = resolve(catalogue, self._request.model.name)
        self._record.alias, self._record.model = resolution.alias, resolution.model
        self._record.made_up = not (
            resolution.model in catalogue.models or self._shared.fleet.holders(resolution.model) or resolution.alias
        )
        self._record.cancel = self._phases.interrupt
        try:
            await self._attempt_until_answered(resolution.model, catalogue)
        finally:
            self._record.phases_ms = self._phases.spent_ms(trio.current_time())

    async def _attempt_until_answered(self, model: str, catalogue: Catalogue) -> None:
        """One neuron after another, within the budget, as long as the client has seen nothing of an answer."""
        failed_on: set[str] = set()
        last: _Retriable | None = None
        while True:
            try:
                route = await self._find_route(model, catalogue, failed_on, last)
            except errors.GatewayError as error:
                await self._give_up(last, error)
                return
            try:
                # Decision and lease in one synchronous step: nobody can evict the model in between.
                with self._shared.fleet.lease(route.node, route.model_id), self._record.routed(model, route.node):
                    await self._ask(route)
                    return
            except _Retriable as retriable:
                last = retriable
            failed_on.add(route.node)
            self._note_failure(route, last)
            self._remember_the_shortest(last.refusal)
            if self._attempts_left == 0 or self._answer.committed:
                await self._give_up(last, last.error)
                return
            self._attempts_left -= 1
            self._record.retried()

    async def _find_route(
        self, model: str, catalogue: Catalogue, failed_on: set[str], last: _Retriable | None
    ) -> Route:
        decision = self._choose(model, catalogue, failed_on, last)
        if not isinstance(decision, Route):
            if self._shared.draining:
                raise _shutting_down()
            decision = await self._wait_for_route(decision, model, catalogue, failed_on, last)
        if self._record.routed_at is None:
            self._record.routed_at = trio.current_time()
        return decision

    def _choose(self, model: str, catalogue: Catalogue, failed_on: set[str], last: _Retriable | None) -> Decision:
        """Another replica if one is left. None is: what then depends on why the last one failed.

        A failure alone makes nobody load the model elsewhere: that takes minutes and may cost others theirs, while
        whoever failed us may be well in a second. A model that is gone (`not loaded`), or whose neuron is down by
        now, is a model that is not loaded, like any other.
        """
        fleet = self._shared.fleet
        if last is None:
            return choose(model, fleet, catalogue)
        with contextlib.suppress(errors.GatewayError):  # no way without them is no answer yet
            decision = choose(model, fleet, catalogue, exclude=failed_on)
            if isinstance(decision, Route) or (isinstance(decision, WaitForLoad) and last.refusal is None):
                return decision
        decision = choose(model, fleet, catalogue)
        if isinstance(decision, Route) and decision.node in failed_on and not last.not_loaded:
            raise last.error
        return decision

    async def _wait_for_route(
        self, decision: Decision, model: str, catalogue: Catalogue, failed_on: set[str], last: _Retriable | None
    ) -> Route:
        """The model is being loaded, or will be. A deadline here is a "not yet", so it says when to ask again."""
        lifecycle = self._shared.lifecycle
        try:
            with self._phases:
                self._phases.enter("load")
                while not isinstance(decision, Route):
                    await lifecycle.wait_until_routable(decision)
                    decision = self._choose(model, catalogue, failed_on, last)
        except errors.DeadlineExceeded as error:
            raise errors.ServiceUnavailable(
                f"model '{model}' is still being loaded: {error.message}{lifecycle.earlier_loads(model)}",
                param="load",
                retry_after_s=lifecycle.retry_after_s(model),
            ) from error
        return decision

    def _note_failure(self, route: Route, failure: _Retriable) -> None:
        """What a failed attempt says about the neuron, for the requests after this one."""
        if failure.not_loaded:
            self._shared.fleet.dropped(route.node, route.model_id)
        elif failure.unreachable:
            self._shared.fleet.failed(route.node, failure.error.message)
        elif failure.refusal is not None and failure.refusal.retry_after_s is not None:
            self._shared.fleet.busy(route.node, route.model_id, failure.refusal.retry_after_s)
        self._shared.poke(route.node)

    def _remember_the_shortest(self, refusal: Refusal | None) -> None:
        """When every replica is busy, the client is told the shortest of their Retry-Afters."""
        if refusal is None:
            return
        known = self._shortest
        if known is None or _patience_s(refusal) <= _patience_s(known):
            self._shortest = refusal

    async def _give_up(self, last: _Retriable | None, error: errors.GatewayError) -> None:
        """Nobody is left to ask: why the last one failed goes to the client rather than that nobody is left.

        Not so for a model that was merely gone: then `error` is of its load.
        """
        if last is None or last.not_loaded or isinstance(error, errors.ShuttingDown):
            raise error
        if last.refusal is None or self._shortest is None or self._answer.started:
            raise last.error
        await self._pass_on(self._shortest)

    # One attempt...

    async def _ask(self, route: Route) -> None:
        """Raises _Retriable while another neuron could still take over, else what went wrong."""
        shared, request = self._shared, self._request
        try:
            origin = shared.origin(route.url)
            name, path, headers = route.model_id, request.path, outgoing_headers(request)
            if (access := route.access) is not None:
                name, path, headers = access.name_of(name), access.path_of(path), access.signed(headers)
            body = splice(request.body, request.model, name)
            head = request_head(origin, path, headers, len(body))
            message = (head + body,) if len(body) < _JOIN_LIMIT_BYTES else (head, body)
            with self._phases:
                async with shared.upstream.exchange(origin, message, self._phases) as response:
                    await self._deliver(response)
            shared.fleet.succeeded(route.node, route.model_id)
        except (errors.UpstreamError, errors.DeadlineExceeded) as error:
            failure = _Retriable(error, unreachable=not isinstance(error, errors.UpstreamMalformedResponse))
            if self._answer.committed:
                self._note_failure(
                    route, failure
                )  # nobody can take over, but the requests after this one can be spared
                raise
            raise failure from error

    async def _deliver(self, response: Response) -> None:
        self._record.upstream_status = response.status
        if response.status >= 300:
            await self._consider_refusal(response)
            return
        is_stream = (response.header(b"content-type") or b"").lower().startswith(b"text/event-stream")
        if is_stream:
            await self._deliver_stream(response)
        elif self._answer.started:
            raise errors.UpstreamMalformedResponse("the neuron answered a request for a stream with something else")
        else:
            await self._deliver_body(response)
        self._record.outcome = "ok"

    async def _deliver_body(self, response: Response) -> None:
        self.pacer.hush()
        self._record.stream = False  # asked for or not: what breaks off here has no events to say so in
        self._record.first_byte_at = trio.current_time()
        meter = BodyMeter()
        try:
            await relay.relay_body(response, meter, self._phases, self._answer, lambda: self._head(response))
        finally:
            self._record.usage = meter.usage

    async def _deliver_stream(self, response: Response) -> None:
        self._record.stream = True
        meter = self._record.meter = StreamMeter()
        self.pacer.opened(lambda: self._head(response))
        await relay.relay_stream(response, meter, self._phases, self.pacer)

    # A neuron says no...

    async def _consider_refusal(self, response: Response) -> None:
        refusal = await Refusal.read(response)
        error = refusal.as_error()
        log.warning(
            "upstream_refused",
            request_id=self._record.request_id,
            model=self._record.model,
            node=self._record.node,
            status=response.status,
            body=refusal.body.decode("utf-8", "replace"),
        )
        if refusal.not_loaded:
            raise _Retriable(error, not_loaded=True)
        if refusal.status == 503:
            raise _Retriable(error, refusal=refusal)
        if self._answer.started:
            raise error
        await self._pass_on(refusal)

    async def _pass_on(self, refusal: Refusal) -> None:
        """The neuron's status, Retry-After and words, in the envelope if they were not in one."""
        self._record.outcome = "upstream_error"
        headers = _plain_headers(self._record, None, content_type=refusal.content_type)
        headers += [(name, value) for name, value in refusal.headers if name == b"retry-after"]
        await self._answer.respond(refusal.status, headers, refusal.envelope())

    # Heads...

    def _head(self, response: Response) -> tuple[int, Headers]:
        """The neuron's own head, less what was between it and us, plus what we say."""
        streaming = self.pacer.head_came
        dropped = (_NOT_FOR_CLIENTS_OF_STREAMS if streaming else _NOT_FOR_CLIENTS) | named_by_connection(
            response.headers
        )
        headers = [
            (name, value)
            for name, value in response.headers
            if name not in dropped and not name.startswith(_NOT_FOR_CLIENTS_PREFIXES)
        ]
        headers += _our_headers(self._record)
        if streaming:
            headers += _STREAM_HEADERS
        return response.status, headers

    def _early_head(self) -> tuple[int, Headers]:
        """The head of a stream whose neuron has not answered yet."""
        headers = [(b"content-type", b"text/event-stream"), *_our_headers(self._record), *_STREAM_HEADERS]
        if self._record.node is None and self._record.model is not None:  # it waits for its load: which model is known
            headers.append((b"x-cortex-model", header_value(self._record.model)))
        return 200, headers


_JOIN_LIMIT_BYTES = 128 * 1024  # copying this much costs less than a second system call

_NOT_FOR_CLIENTS = HOP_BY_HOP | {b"x-request-id", b"date"}
_NOT_FOR_CLIENTS_OF_STREAMS = _NOT_FOR_CLIENTS | {b"content-length", b"cache-control", b"x-accel-buffering"}
_NOT_FOR_CLIENTS_PREFIXES = (b"x-cortex-", b"proxy-")
_STREAM_HEADERS: Headers = [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]


def _our_headers(record: Record) -> Headers:
    headers = [(b"x-request-id", record.request_id.encode())]
    if record.model is not None and record.node is not None:
        headers.append((b"x-cortex-model", header_value(record.model)))
        headers.append((b"x-cortex-node", header_value(record.node)))
    if record.alias is not None:
        headers.append((b"x-cortex-alias", header_value(record.alias)))
    return headers


def _plain_headers(record: Record, retry_after_s: int | None, content_type: bytes = b"application/json") -> Headers:
    headers = [(b"content-type", content_type), *_our_headers(record)]
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % retry_after_s))
    return headers


def header_value(text: str) -> bytes:
    """A name as a header value: ids are ASCII nearly always; what is not is percent-encoded."""
    encoded = text.encode()
    if encoded.isascii() and text.isprintable():
        return encoded
    return b"".join(b"%c" % byte if 0x20 <= byte < 0x7F else b"%%%02X" % byte for byte in encoded)


def _patience_s(refusal: Refusal) -> float:
    return math.inf if refusal.retry_after_s is None else refusal.retry_after_s


class _Retriable(Exception):
    """An attempt failed before the client saw any of it."""

    def __init__(
        self,
        error: errors.GatewayError,
        *,
        refusal: Refusal | None = None,
        not_loaded: bool = False,
        unreachable: bool = False,
    ) -> None:
        super().__init__(error.message)
        self.error = error
        self.refusal = refusal
        self.not_loaded = not_loaded
        self.unreachable = unreachable
