"""One attempt: one request sent to one neuron, and its answer carried to the client. Who is asked, others decide.

An attempt either carries the answer to its end, or raises `Retriable` while another neuron could still take over,
`Refused` if none need be asked, or what went wrong after that. Until there is something to tell the client it touches
nothing that another attempt at the same request could touch too.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NoReturn

import structlog
import trio

from catalogue.models import Alias
from gateway import errors
from gateway.asgi import Headers
from gateway.dialects import Outgoing, Translation
from gateway.dialects.json_splice import edit
from gateway.dialects.rename_model import Echo
from gateway.dialects.upstream_errors import UpstreamErrorResponse
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.routing.choose import Route
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.response_parser import UpstreamResponse
from gateway.proxy import relay, response_headers
from gateway.proxy.client_response import ClientResponse
from gateway.proxy.keepalive import KeepAlive
from gateway.proxy.request import InferenceRequest, outgoing_headers
from gateway.proxy.shadow.transcript import Transcript
from gateway.telemetry.attempt_record import AttemptRecord
from gateway.telemetry.request_record import Record

if TYPE_CHECKING:
    from gateway.proxy.app import Inference

__all__ = ["Attempt", "Refused", "Retriable", "pass_on"]

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
        refusal: UpstreamErrorResponse | None = None,
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


class Refused(Exception):
    """The neuron says no to the request as it is: 400, 413 and the like. Another would say the same."""

    def __init__(self, refusal: UpstreamErrorResponse, error: errors.GatewayError) -> None:
        super().__init__(error.message)
        self.refusal = refusal
        self.error = error


class Attempt:
    """One. Its lease and its `phases` are its caller's.

    Args:
        shared: What the requests share.
        request: The client's.
        record: Written once this attempt answers, and not before.
        pacer: The request's.
        phases: Nobody else's while it runs.
        routed: Where it goes, as it is accounted for.
        policy: What its alias says.
        claim: Asked in the moment in which there is something to tell the client: False if somebody else answers it
            already; this attempt's scope is cancelled then. None if nobody else could.
    """

    __slots__ = (
        "_answer",
        "_begun",
        "_claim",
        "_pacer",
        "_phases",
        "_policy",
        "_record",
        "_request",
        "_routed",
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
        pacer: KeepAlive,
        *,
        phases: PhaseDeadlines,
        routed: AttemptRecord,
        policy: Alias | None = None,
        claim: Callable[[Attempt], bool] | None = None,
    ) -> None:
        self._shared = shared
        self._request = request
        self._record = record
        self._pacer = pacer
        self._answer = pacer.client
        self._phases = phases
        self._policy = policy
        self._routed = routed
        self._claim = claim
        self.translation: Translation | None = None
        """What stands between the neuron's answer and the client; None for nothing."""
        self._begun = trio.current_time()
        self.listens = False
        self.heard: Transcript | None = None
        """What the answer said, if it was to be listened to."""

    async def run(self, route: Route) -> None:
        """Ask, and carry the answer. Raises Retriable, Refused, GatewayError or ClientGone."""
        try:
            outgoing = self._prepare(route)
            headers = outgoing_headers(self._request, translated=outgoing.translation is not None)
            origin, message = build_request(route, outgoing.path, headers, outgoing.body, upload=outgoing.upload)
            with self._phases:
                async with self._shared.upstream.exchange(origin, message, self._phases, outgoing.upload) as response:
                    await self._deliver(response)
            self._shared.fleet.succeeded(route.node, route.model_id, answered=True)
        except Refused:
            self._shared.fleet.succeeded(route.node, route.model_id)  # in being a neuron
            raise
        except (errors.UpstreamError, errors.DeadlineExceeded) as error:
            failure = Retriable(error, unreachable=not isinstance(error, errors.UpstreamMalformedResponse))
            if self._answer.committed:
                # Nobody can take over, but the requests after this one can be spared.
                self._shared.note_failure(route, failure)
                raise
            raise failure from error

    def _prepare(self, route: Route) -> Outgoing:
        outgoing = self._request.dialogue.outgoing(neuron_model_name(route), route.backend)
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

    async def _deliver(self, response: UpstreamResponse) -> None:
        if response.status >= 300:
            await self._refuse(response)
        is_stream = (response.header(b"content-type") or b"").lower().startswith(b"text/event-stream")
        if self.listens:
            self._listen(response, stream=is_stream)
        if is_stream:
            await self._deliver_stream(response)
        else:
            await self._deliver_body(response)
        self._record.outcome = "ok"

    def _listen(self, response: UpstreamResponse, *, stream: bool) -> None:
        heard = self.heard = Transcript(self._begun, stream=stream)
        response.listener = lambda chunk: heard.feed(chunk, trio.current_time())

    async def _deliver_stream(self, response: UpstreamResponse) -> None:
        meter = self._record.stream_meter()
        head = partial(self._head, response, streaming=True)
        # While another may answer in the end, silence is filled under a head that names neither.
        self._pacer.stream_started(head if self._claim is None else None)
        preamble = await relay.read_preamble(response, meter)
        await self._begin_to_answer(response)
        self._pacer.head = head
        self._record.stream, self._record.meter = True, meter
        await relay.relay_stream(response, preamble, meter, self._phases, self._pacer, translation=self.translation)

    async def _deliver_body(self, response: UpstreamResponse) -> None:
        self._refuse_unless_it_can_be_told()
        if self._claim is None:
            self._pacer.disable_keepalive()
        first = await response.receive()
        self._refuse_unless_it_can_be_told()
        await self._begin_to_answer(response)
        self._pacer.disable_keepalive()
        self._record.stream = False  # asked for or not: what breaks off here has no events to say so in
        self._record.first_byte_at = trio.current_time()
        meter = self._record.meter_whole(response.header(b"content-type"))
        head = partial(self._head, response, streaming=False)
        if isinstance(self.translation, Echo) and not _is_json(response):
            self.translation = self.translation.then  # sound, say: there is no name in it
        try:
            if self.translation is None:
                await relay.relay_body(response, first, meter, self._phases, self._answer, head=head)
            else:
                await relay.relay_whole(
                    response, first, meter, self._phases, self._answer, head=head, translation=self.translation
                )
        finally:
            self._record.usage = meter.usage

    def _refuse_unless_it_can_be_told(self) -> None:
        if self._answer.started:
            raise errors.UpstreamMalformedResponse("the neuron answered a request for a stream with something else")

    async def _begin_to_answer(self, response: UpstreamResponse) -> None:
        """From here on this is the attempt whose answer the client gets.

        Unless another was quicker, even if in the same moment: then we have been cancelled, and notice it here.
        """
        if self._claim is not None and not self._claim(self):
            await trio.sleep_forever()
        self._record.node, self._record.upstream_status = self._routed.node, response.status

    def _head(self, response: UpstreamResponse, *, streaming: bool) -> tuple[int, Headers]:
        headers = response_headers.of_upstream(
            response.headers,
            self._record,
            streaming=streaming,
            translated=self.translation is not None,
            extra=self._request.dialect.headers(self._record.request_id),
        )
        return response.status, headers

    async def _refuse(self, response: UpstreamResponse) -> NoReturn:
        refusal = await UpstreamErrorResponse.read(response)
        error = refusal.as_error()
        log.warning(
            "upstream_refused",
            request_id=self._record.request_id,
            model=self._record.model,
            node=self._routed.node,
            status=response.status,
            body=refusal.body.decode("utf-8", "replace"),
        )
        if refusal.not_loaded:
            raise Retriable(error, not_loaded=True)
        if refusal.may_differ_elsewhere:
            raise Retriable(error, refusal=refusal)
        raise Refused(refusal, error)


def _is_json(response: UpstreamResponse) -> bool:
    return b"json" in (response.header(b"content-type") or b"").lower()


async def pass_on(
    refusal: UpstreamErrorResponse, request: InferenceRequest, answer: ClientResponse, record: Record
) -> None:
    """Tell the client a neuron's no: its status, Retry-After and words, in the form the client's dialect has."""
    record.outcome, record.upstream_status = "upstream_error", refusal.status
    content_type, body = request.dialect.upstream_error(refusal, record.request_id)
    headers = response_headers.of_ours(record, request.dialect.headers(record.request_id), content_type)
    headers += [(name, value) for name, value in refusal.headers if name == b"retry-after"]
    await answer.respond(refusal.status, headers, body)
