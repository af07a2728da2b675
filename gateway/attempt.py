"""One attempt: one request sent to one neuron, and its answer carried to the client. Who is asked, others decide.

An attempt either carries the answer to its end, or raises `Retriable` while another neuron could still take over, or
raises what went wrong after that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
import trio

from catalogue.models import Alias
from gateway import errors, heads, relay
from gateway.accounting import Record
from gateway.asgi import Headers
from gateway.dialects import Outgoing, Translation
from gateway.echo import Echo
from gateway.heard import Heard
from gateway.phases import Phases
from gateway.refusal import Refusal
from gateway.relay import Answer, Pacer
from gateway.request import InferenceRequest, outgoing_headers
from gateway.rewrite import edit
from gateway.routing import Route
from gateway.upstream import Response, request_head

if TYPE_CHECKING:
    from gateway.inference import Inference

__all__ = ["Attempt", "Retriable", "pass_on"]

_JOIN_LIMIT_BYTES = 128 * 1024  # copying this much costs less than a second system call

log = structlog.get_logger("cortex.attempt")


class Retriable(Exception):
    """An attempt failed before the client saw any of it.

    `refusal` is the neuron's own no, where that is what happened; `not_loaded` that it does not have the model;
    `unreachable` that the neuron failed rather than refused.
    """

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

    @property
    def may_be_the_request(self) -> bool:
        """Whether neuron and request are both to be suspected: it broke over it, or answered nonsense."""
        if self.refusal is not None:
            return self.refusal.is_failure
        return isinstance(self.error, errors.UpstreamMalformedResponse)


class Attempt:
    """One. Its `phases` are its own or its request's; its lease is its caller's; `policy` is what its alias says."""

    __slots__ = (
        "_answer",
        "_begun",
        "_pacer",
        "_phases",
        "_policy",
        "_record",
        "_request",
        "_shared",
        "heard",
        "listens",
        "translation",
    )

    def __init__(
        self,
        shared: Inference,
        request: InferenceRequest,
        record: Record,
        pacer: Pacer,
        phases: Phases,
        *,
        policy: Alias | None = None,
    ) -> None:
        self._shared = shared
        self._request = request
        self._record = record
        self._pacer = pacer
        self._answer = pacer.answer
        self._phases = phases
        self._policy = policy
        self.translation: Translation | None = None
        """What stands between the neuron's answer and the client; None for nothing."""
        self._begun = trio.current_time()
        self.listens = False
        self.heard: Heard | None = None
        """What the answer said, if it was to be listened to."""

    async def run(self, route: Route) -> None:
        """Ask, and carry the answer. Raises Retriable, GatewayError or ClientGone."""
        try:
            origin = self._shared.origin(route.url)
            outgoing = self._prepare(route)
            message = self._message(route, outgoing)
            with self._phases:
                async with self._shared.upstream.exchange(origin, message, self._phases, outgoing.upload) as response:
                    await self._deliver(response)
            self._shared.fleet.succeeded(route.node, route.model_id, answered=self._record.outcome == "ok")
        except (errors.UpstreamError, errors.DeadlineExceeded) as error:
            failure = Retriable(error, unreachable=not isinstance(error, errors.UpstreamMalformedResponse))
            if self._answer.committed:
                # Nobody can take over, but the requests after this one can be spared.
                self._shared.note_failure(route, failure)
                raise
            raise failure from error

    def _prepare(self, route: Route) -> Outgoing:
        name = route.model_id if route.access is None else route.access.name_of(route.model_id)
        outgoing = self._request.dialogue.outgoing(name, route.backend)
        self.translation = outgoing.translation
        return outgoing if self._policy is None else self._as_the_alias_wants(outgoing, self._policy)

    def _as_the_alias_wants(self, outgoing: Outgoing, policy: Alias) -> Outgoing:
        """Its parameters in what is asked, in the dialect it is asked in; its name in what is answered."""
        if policy.echo == "alias":
            self.translation = Echo(policy.name, outgoing.translation, self._error_event)
        if outgoing.upload is not None or not (policy.params or policy.force):  # a form is no JSON
            return outgoing
        return outgoing._replace(body=edit(outgoing.body, policy.params, policy.force))

    def _error_event(self, error: errors.GatewayError) -> bytes:
        return self._request.dialect.error_event(error, self._record.request_id)

    def _message(self, route: Route, outgoing: Outgoing) -> tuple[bytes, ...]:
        path, body = outgoing.path, outgoing.body
        headers = outgoing_headers(self._request, translated=outgoing.translation is not None)
        if (access := route.access) is not None:
            path, headers = access.path_of(path), access.signed(headers)
        length = len(body) if outgoing.upload is None else outgoing.upload.length
        head = request_head(self._shared.origin(route.url), path, headers, length)
        return (head + body,) if len(body) < _JOIN_LIMIT_BYTES else (head, body)

    async def _deliver(self, response: Response) -> None:
        self._record.upstream_status = response.status
        if response.status >= 300:
            await self._consider_refusal(response)
            return
        is_stream = (response.header(b"content-type") or b"").lower().startswith(b"text/event-stream")
        if self.listens:
            self._listen(response, stream=is_stream)
        if is_stream:
            await self._deliver_stream(response)
        elif self._answer.started:
            raise errors.UpstreamMalformedResponse("the neuron answered a request for a stream with something else")
        else:
            await self._deliver_body(response)
        self._record.outcome = "ok"

    def _listen(self, response: Response, *, stream: bool) -> None:
        heard = self.heard = Heard(self._begun, stream=stream)
        response.listener = lambda chunk: heard.feed(chunk, trio.current_time())

    async def _deliver_stream(self, response: Response) -> None:
        self._record.stream = True
        meter = self._record.meter_stream()
        self._pacer.opened(lambda: self._head(response))
        await relay.relay_stream(response, meter, self._phases, self._pacer, self.translation)

    async def _deliver_body(self, response: Response) -> None:
        self._pacer.hush()
        self._record.stream = False  # asked for or not: what breaks off here has no events to say so in
        self._record.first_byte_at = trio.current_time()
        meter = self._record.meter_whole(response.header(b"content-type"))
        if isinstance(self.translation, Echo) and not _is_json(response):
            self.translation = self.translation.then  # sound, say: there is no name in it

        def head() -> tuple[int, Headers]:
            return self._head(response)

        try:
            if self.translation is None:
                await relay.relay_body(response, meter, self._phases, self._answer, head)
            else:
                await relay.relay_whole(response, meter, self._phases, self._answer, head, translation=self.translation)
        finally:
            self._record.usage = meter.usage

    def _head(self, response: Response) -> tuple[int, Headers]:
        headers = heads.of_upstream(
            response.headers,
            self._record,
            streaming=self._pacer.head_came,
            translated=self.translation is not None,
            extra=self._request.dialect.headers(self._record.request_id),
        )
        return response.status, headers

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
            raise Retriable(error, not_loaded=True)
        if refusal.may_differ_elsewhere:
            raise Retriable(error, refusal=refusal)
        if self._answer.started:
            raise error
        self._record.attempts[-1].refused(error)
        await pass_on(refusal, self._request, self._answer, self._record)


def _is_json(response: Response) -> bool:
    return b"json" in (response.header(b"content-type") or b"").lower()


async def pass_on(refusal: Refusal, request: InferenceRequest, answer: Answer, record: Record) -> None:
    """Tell the client a neuron's no: its status, Retry-After and words, in the form the client's dialect has."""
    record.outcome = "upstream_error"
    content_type, body = request.dialect.refusal(refusal, record.request_id)
    headers = heads.of_ours(record, request.dialect.headers(record.request_id), content_type)
    headers += [(name, value) for name, value in refusal.headers if name == b"retry-after"]
    await answer.respond(refusal.status, headers, body)
