"""One attempt: send the request to one replica and relay its answer to the client.

The caller chose the replica and decides about retries. Until the attempt has something for the client it changes
nothing that another attempt at the same request could change, because two may run at once (`hedging/`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NoReturn

import structlog
import trio
from msgspec import Struct, structs

from catalogue.models import Alias
from gateway import errors
from gateway.asgi import Headers
from gateway.dialects import OutgoingRequest, Translation
from gateway.dialects.json_splice import edit
from gateway.dialects.large_bodies.spliced_body import text_of
from gateway.dialects.rename_model import ModelRenamer
from gateway.dialects.token_room import TokenRefusal, with_room
from gateway.dialects.upstream_errors import UpstreamErrorResponse, error_response_in, from_stream
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.route import Route
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy import conversion, relay
from gateway.proxy.attempt_failures import (
    AttemptFailures,
    RefusedByUpstream,
    Retriable,
    gateway_fault,
    is_connect_failure,
)
from gateway.proxy.body.off_loop import INLINE_BYTES, off_loop
from gateway.proxy.context import ProxyContext
from gateway.proxy.quoted_prompt import quotes_prompt
from gateway.proxy.request import InferenceRequest, outgoing_headers
from gateway.proxy.response import response_headers
from gateway.proxy.response.client_response import ClientResponse
from gateway.proxy.response.keepalive import KeepAlive
from gateway.proxy.shadow.transcript import Transcript
from gateway.proxy.upstream_stream import UpstreamStream
from gateway.telemetry.attempt_record import AttemptRecord
from gateway.telemetry.meter import is_json, usage_in
from gateway.telemetry.request_record import RequestRecord
from gateway.telemetry.tracing.trace_context import new_span_id

__all__ = ["Attempt"]

log = structlog.get_logger("cortex.attempt")


class Attempt(Struct, eq=False):
    """Call `run` once.

    Args:
        context: The shared collaborators.
        request: The client's request.
        record: The request's record. The attempt writes to it once it has something for the client.
        client: The response to the client.
        keepalive: Keeps the client's connection alive while the neuron is silent; None if it asked for no stream.
        route: The chosen replica.
        attempt_record: The record of this attempt.
        phases: The deadlines of this attempt. No other attempt uses them while it runs.
        failures: A failure of this attempt is added here.
        policy: The alias, if it does more than name a model.
        keep_transcript: Whether to keep a transcript of the answer, for the comparison with a shadow.

    Attributes:
        claim: Called when the attempt has something for the client: False if another attempt answers already, in which
            case this one's scope has been cancelled. None if no other attempt could answer.
        translation: Turns the neuron's answer into the client's; None if they are the same bytes.
        transcript: What the neuron answered, if `keep_transcript`.
        ignored: The value of `x-cortex-ignored`, if this attempt answers.
    """

    context: ProxyContext
    request: InferenceRequest
    record: RequestRecord
    client: ClientResponse
    keepalive: KeepAlive | None
    route: Route
    attempt_record: AttemptRecord
    phases: PhaseDeadlines
    failures: AttemptFailures
    policy: Alias | None = None
    keep_transcript: bool = False
    claim: Callable[[Attempt], bool] | None = None
    translation: Translation | None = None
    transcript: Transcript | None = None
    ignored: bytes = b""

    async def run(self) -> None:
        """Send the request and relay the answer. Takes the lease before the first checkpoint.

        Raises:
            Retriable: Another replica may still answer; the client has seen nothing.
            RefusedByUpstream: The neuron refused the request.
            GatewayError: The neuron failed after the client had seen some of the answer.
            ClientGone: The client left.
        """
        context, route = self.context, self.route
        try:
            # No checkpoint lies between choosing the route and taking the lease, so no eviction can come in between.
            now, gpu_use = self.attempt_record.began_at, self.record.gpu_use
            lease = context.fleet.lease(route.node, route.model_id, self.phases, gpu_use, now=now)
            with lease, self.attempt_record:
                if context.shadows is not None:
                    context.shadows.give_way(route.node)
                try:
                    body = self.request.body
                    outgoing = self._outgoing() if len(body) <= INLINE_BYTES else await off_loop(body, self._outgoing)
                    try:
                        await self._send(outgoing)
                    except RefusedByUpstream as refused:
                        if not self._may_shorten_answer(outgoing, refused.refusal):
                            raise
                        outgoing = await self._with_shorter_answer(outgoing, refused.refusal, refused.error)
                        await self._send(outgoing)
                except errors.GatewayError as error:
                    if error.is_neurons_text:  # an error event in a stream, or an error under a 200
                        error.quotes_prompt = quotes_prompt(error.message, self.request.body)
                    raise
                context.fleet.succeeded(route.node, route.model_id, answered=True)
        except RefusedByUpstream as refused:
            context.fleet.succeeded(route.node, route.model_id)  # it refused, so it is up
            self.attempt_record.refused(refused.error)
            raise
        except Retriable as failure:
            self._failed(failure)
            raise
        except errors.GatewayError as error:
            self._broke_off(error)
            raise

    def _outgoing(self) -> OutgoingRequest:
        """The request as this neuron gets it."""
        route = self.route
        outgoing = self.request.parsed.outgoing(neuron_model_name(route), route.backend)
        self.translation, self.ignored = outgoing.translation, outgoing.ignored
        return outgoing if self.policy is None else self._apply_alias(outgoing, self.policy)

    async def _send(self, outgoing: OutgoingRequest) -> None:
        route, request = self.route, self.request
        headers = outgoing_headers(request, outgoing.path, self.context.settings.gateway.pass_request_headers)
        trace = self.record.trace
        if trace is not None:
            self.attempt_record.span_id = new_span_id()
            headers = trace.headers_for(self.attempt_record.span_id, headers)
        origin, message = build_request(route, outgoing.path, headers, outgoing.body, upload=outgoing.upload)
        sent_at = trio.current_time() if self.keep_transcript else 0.0
        with self.phases, self.context.upstream.exchange(origin, message, self.phases, outgoing.upload) as exchange:
            response = await exchange.response()
            if response.status >= 300:
                await self._raise_refusal(response)
            content_type = (response.header(b"content-type") or b"").lower()
            is_stream = content_type.startswith(b"text/event-stream")
            if self.keep_transcript:
                self.transcript = Transcript(sent_at)
            # Comments may be put into a stream, so it is never passed on compressed.
            if is_stream or self.translation is not None or self.keep_transcript:
                response.decode_body()
            if self.translation is not None and self.translation.converts:
                await self._relay_in_clients_form(response, self.translation, labelled=is_stream)
            else:
                await (self._relay_stream(response) if is_stream else self._relay_body(response, content_type))
        self.record.outcome = "ok"

    def _apply_alias(self, outgoing: OutgoingRequest, policy: Alias) -> OutgoingRequest:
        """Put the alias's parameters into the body, in the neuron's dialect, and its name into the answer."""
        request = self.request
        if policy.echo == "alias":
            record = self.record
            self.translation = ModelRenamer(
                policy.name,
                outgoing.translation,
                lambda error: request.dialect.error_event(error, record.request_id),
            )
        is_form = request.upload is not None  # not `outgoing.upload`: a small form is sent in one piece
        if is_form or not (policy.params or policy.force):
            return outgoing
        outline = request.model.outline if outgoing.body is request.body else None
        return structs.replace(outgoing, body=edit(outgoing.body, policy.params, policy.force, outline))

    def _may_shorten_answer(self, outgoing: OutgoingRequest, refusal: UpstreamErrorResponse) -> bool:
        """Whether to ask for a shorter answer, if there is room for one.

        By default only for a request that the gateway has translated: a client of the neuron's own dialect gets its
        refusal. A body that must pass unchanged is only shortened for an engine, and if the alias asks for it.
        """
        if refusal.token_refusal is None or not outgoing.body:
            return False
        is_translated = outgoing.path != self.request.path
        wanted = None if self.policy is None else self.policy.clamp_max_tokens
        return is_translated if wanted is None else wanted and (is_translated or self.route.access is not None)

    async def _with_shorter_answer(
        self, outgoing: OutgoingRequest, refusal: UpstreamErrorResponse, error: errors.GatewayError
    ) -> OutgoingRequest:
        """The request with as many tokens for the answer as the neuron has room for.

        Raises:
            RefusedByUpstream: There is no room: the client gets the refusal.
        """
        token_refusal = refusal.token_refusal or TokenRefusal()
        body = await off_loop(text_of(outgoing.body), partial(with_room, outgoing.body, token_refusal))
        if body is None:
            raise RefusedByUpstream(refusal, error)
        log.info(
            "max_tokens_clamped",
            request_id=self.record.request_id,
            model=self.record.routing.model,
            node=self.route.node,
            prompt_tokens=token_refusal.prompt,
            room=token_refusal.room,
        )
        return structs.replace(outgoing, body=body)

    # Relaying the answer...

    async def _relay_in_clients_form(
        self, response: UpstreamResponse, translation: Translation, *, labelled: bool
    ) -> None:
        """Relay an answer whose first bytes say whether it is a stream, whatever its content type says."""
        if labelled and self.request.stream and self.keepalive is not None:
            head = partial(self._head, response, streaming=True)
            self.keepalive.stream_started(head if self.claim is None else None)
        first = await conversion.first_bytes(response, self.phases)
        is_stream = conversion.is_event_stream(first, labelled=labelled)
        if self.request.stream and is_stream:
            await self._relay_stream(response, first)
        elif self.request.stream:
            await self._relay_converted(response, translation, first)
        elif is_stream:
            await self._relay_assembled(response, translation, first)
        else:
            await self._relay_body(response, (response.header(b"content-type") or b"").lower(), first)

    async def _relay_converted(self, response: UpstreamResponse, translation: Translation, first: bytes) -> None:
        await self._win(response)
        self.record.first_byte_at = trio.current_time()
        meter = self.record.answer.body_meter(b"application/json")
        body = await conversion.read_whole(response, first, self.phases)
        meter.feed(body)
        meter.finish()
        self.record.answer.usage = meter.usage
        if self.transcript is not None:
            self.transcript.add_body(body)
        head = partial(self._head, response, streaming=True, form=b"text/event-stream")
        await conversion.relay_converted(body, self.client, head=head, translation=translation)

    async def _relay_assembled(self, response: UpstreamResponse, translation: Translation, first: bytes) -> None:
        meter = self.record.answer.stream_meter()
        stream = UpstreamStream(response, meter, self.transcript, frames_all=True, first=first)
        head = partial(self._head, response, streaming=False, form=b"application/json")
        await self._win(response)
        self.record.first_byte_at = trio.current_time()
        self.record.answer.meter = meter
        await conversion.relay_assembled(stream, self.phases, self.client, head=head, translation=translation)

    async def _relay_stream(self, response: UpstreamResponse, first: bytes = b"") -> None:
        meter = self.record.answer.stream_meter()
        head = partial(self._head, response, streaming=True, form=b"text/event-stream" if first else None)
        keepalive = self.keepalive or KeepAlive(self.client, self.context.settings.streaming, head)
        # While another attempt may win, keep-alives go out under a head that names no neuron.
        keepalive.stream_started(head if self.claim is None else None)
        frames_all = self.translation is not None and not self.translation.passes_text
        stream = UpstreamStream(response, meter, self.transcript, frames_all=frames_all, first=first)
        preamble = await stream.read_preamble(self.phases)
        if meter.error and frames_all and not meter.generated:
            self._refuse(error_response_in(meter.error))  # nothing was sent yet: as if it had its own status
        await self._win(response)
        keepalive.head = head
        self.record.stream, self.record.answer.meter = True, meter
        # In a race or under the eyes of a shadow, the stream stays in this task.
        source = response if self.claim is None and self.transcript is None else None
        await relay.relay_stream(stream, preamble, self.phases, keepalive, translation=self.translation, carried=source)
        if meter.error:
            raise from_stream(meter.error)  # it passed as it came: the client has it

    async def _relay_body(self, response: UpstreamResponse, content_type: bytes, first: bytes | None = None) -> None:
        form = None if first is None else b"application/json"
        keepalive = self.keepalive if self.request.model.stream else None
        if keepalive is not None:
            self._require_unstarted()
            if self.claim is None:
                keepalive.disable_keepalive()
        is_whole = first is None and self.transcript is None and response.complete
        if first is None and (first := response.receive_now()) is None:
            first, is_whole = await response.receive(), False
        if keepalive is not None:
            self._require_unstarted()
        if self.claim is None:
            self._answers(response)
        else:
            await self._win(response)
        if keepalive is not None:
            keepalive.disable_keepalive()
        record = self.record
        record.stream = False  # whatever the client asked for: this body cannot carry an error event
        record.first_byte_at = now = record.now()
        if not is_whole or self.translation is not None or record.answer.is_observed:
            await self._relay_pieces(response, content_type, first, form)
            return
        status, headers = self._head(response, streaming=False)
        self.phases.enter("idle", now, waits=False)
        self.client.committed = True
        await self.client.respond(status, headers, first)
        record.answer.usage = usage_in(first) if is_json(content_type) else None

    async def _relay_pieces(
        self, response: UpstreamResponse, content_type: bytes, first: bytes, form: bytes | None
    ) -> None:
        meter, translation = self.record.answer.body_meter(content_type), self.translation
        if isinstance(translation, ModelRenamer) and b"json" not in content_type:
            translation = self.translation = translation.then  # sound, for example, contains no model name
        head = partial(self._head, response, streaming=False, form=form, keeps_length=translation is None)
        try:
            if translation is None:
                await relay.relay_body(
                    response, first, meter, self.phases, self.client, head=head, transcript=self.transcript
                )
            else:
                await relay.relay_translated(
                    response,
                    first,
                    meter,
                    self.phases,
                    self.client,
                    head=head,
                    translation=translation,
                    transcript=self.transcript,
                )
        finally:
            self.record.answer.usage = meter.usage

    def _require_unstarted(self) -> None:
        """An early 200 promised the client an event stream."""
        if self.client.started:
            raise errors.UpstreamMalformedResponse("the neuron answered a streaming request with something else")

    async def _win(self, response: UpstreamResponse) -> None:
        """Become the attempt that answers the client. Never returns if another one does: this one is cancelled."""
        if self.claim is not None and not self.claim(self):
            await trio.sleep_forever()
        self._answers(response)

    def _answers(self, response: UpstreamResponse) -> None:
        self.record.routing.node, self.record.upstream_status = self.route.node, response.status
        self.record.ignored = self.ignored

    def _head(
        self, response: UpstreamResponse, *, streaming: bool, form: bytes | None = None, keeps_length: bool = False
    ) -> tuple[int, Headers]:
        """Status and headers. `form` replaces a content type that is none of that form."""
        headers = response_headers.from_upstream(
            response.headers,
            self.record,
            streaming=streaming,
            keeps_length=keeps_length,
            extra=self.request.dialect.headers(self.record.request_id),
            also=self.context.settings.gateway.pass_headers,
        )
        if form is not None and form not in (response.header(b"content-type") or b"").lower():
            headers = [(b"content-type", form), *(item for item in headers if item[0] != b"content-type")]
        return response.status, headers

    async def _raise_refusal(self, response: UpstreamResponse) -> NoReturn:
        response.decode_body()
        self._refuse(await UpstreamErrorResponse.read(response), response.header(b"location"))

    def _refuse(self, refusal: UpstreamErrorResponse, location: bytes | None = None) -> NoReturn:
        error = gateway_fault(refusal.status) or refusal.as_error()
        self.record.ignored = self.ignored
        error.quotes_prompt = quotes_prompt(error.message, self.request.body)
        log.warning(
            "upstream_refused",
            request_id=self.record.request_id,
            model=self.record.routing.model,
            node=self.route.node,
            status=refusal.status,
            body=refusal.body.decode("utf-8", "replace"),
            location=None if location is None else location.decode("latin-1"),
        )
        if isinstance(error, errors.UpstreamError):
            raise Retriable(error)
        if refusal.not_loaded:
            raise Retriable(error, not_loaded=True)
        if refusal.may_differ_elsewhere:
            raise Retriable(error, refusal=refusal)
        raise RefusedByUpstream(refusal, error)

    def _broke_off(self, error: errors.GatewayError) -> None:
        """Record an error in the answer. Raises Retriable if another replica can take over."""
        if isinstance(error, errors.BadRequest):
            if error.is_neurons_text:  # an error in a 200 counts as the same error under its own status
                self.context.fleet.succeeded(self.route.node, self.route.model_id)
                self.attempt_record.refused(error)
            return
        is_overload = isinstance(error, errors.ServiceUnavailable) and error.is_neurons_text
        if not (is_overload or isinstance(error, errors.UpstreamError | errors.DeadlineExceeded)):
            return
        is_lost = not (error.is_neurons_text or isinstance(error, errors.UpstreamMalformedResponse))
        failure = Retriable(error, unreachable=is_lost)
        if not self.client.committed:
            self._failed(failure)
            raise failure from error
        self._report(failure)  # no other replica can take over, but the next requests can avoid this neuron

    def _failed(self, failure: Retriable) -> None:
        self.attempt_record.failed(failure.error)
        self.failures.add(self.route, failure)
        self._report(failure)

    def _report(self, failure: Retriable) -> None:
        """Tell the fleet, for the requests that come next, and have the neuron polled."""
        fleet, route = self.context.fleet, self.route
        if failure.not_loaded:
            fleet.dropped(route.node, route.model_id, route.url)
        elif failure.unreachable:
            if is_connect_failure(failure.error):
                fleet.unreachable(route.node, route.model_id, failure.error.message, route.url)
            else:
                fleet.at_fault(route.node, route.model_id, failure.error.message, route.url)
        elif failure.refusal is not None and failure.refusal.retry_after_s is not None:
            fleet.busy(route.node, route.model_id, failure.refusal.retry_after_s)
        self.context.poll_soon(route.node)
