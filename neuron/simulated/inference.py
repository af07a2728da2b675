"""One inference request at a simulated neuron: admission, prefill, decode, and the faults in force."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
import trio

from neuron.simulated import faults, responses, shapes, text
from neuron.simulated.faults import FaultPlan
from neuron.simulated.forms import Form, parse
from neuron.simulated.hardware import SimModel
from neuron.simulated.http import Framing, HangUp, SimExchange, SimRequest
from neuron.simulated.state import Cancelled, NeuronState, Received, Resident, SimRefusal

_BODY_KEPT_BYTES = 1 << 20  # a log of a thousand bodies must stay bounded
_NO_FORM = Form({}, ())
_SSE = "text/event-stream"
_JSON = "application/json"

T = TypeVar("T")


class Head(msgspec.Struct):
    """The fields every request body has."""

    model: str
    stream: bool | None = None


@dataclass(slots=True)
class Job:
    """One request: where it runs, which faults apply, which phase it is in."""

    state: NeuronState
    exchange: SimExchange
    head: Head
    plan: FaultPlan
    resident: Resident
    form: Form  # empty unless the request is a form
    phase: str = "prefill"

    def real_s(self, simulated_s: float) -> float:
        """Seconds of the clock, with the `slow` fault's factor."""
        slow = self.plan.get(faults.Slow)
        return self.state.real_s(simulated_s * (slow.factor if slow else 1.0))

    @property
    def model(self) -> SimModel:
        """The model it runs on."""
        return self.resident.model

    @property
    def voice(self) -> shapes.Voice:
        """How its answer is phrased."""
        wrong = self.plan.get(faults.WrongModel)
        odd = self.plan.get(faults.OddUsage)
        return shapes.Voice(
            model=wrong.echo if wrong else self.head.model,
            usage=odd.where if odd else "own",
            done=faults.NoDone not in self.plan,
            created=float(shapes.CREATED) if faults.FloatCreated in self.plan else shapes.CREATED,
        )


Endpoint = Callable[[Job], Awaitable[None]]
"""What a path does once its request has a slot."""


async def infer(state: NeuronState, exchange: SimExchange, answer: Endpoint, *, is_form: bool) -> None:
    """Answer one inference request, with the faults in force applied.

    Args:
        state: Of the neuron.
        exchange: With the request.
        answer: Of its path.
        is_form: The request must be a form, else JSON.

    Raises:
        Refusal: 400, 404 or 503, with the neuron's text.
        HangUp: the connection must end here.
    """
    form = _form(exchange.request) if is_form else None
    head = read(Head, exchange.request.body) if form is None else _head_of(form)
    _log(state, exchange, head, form)
    plan = state.faults.plan(head.model)
    resident = _resident(state, head, plan)
    exchange.goes_on_alone = faults.RunsOn in plan
    if resident is None or faults.NotLoaded in plan:
        raise SimRefusal(404, f"model '{head.model}' not loaded on this neuron")
    job = Job(state, exchange, head, plan, resident, form or _NO_FORM)
    with _noting_disconnect(job):
        await _apply_early_faults(job)
        job.phase = "queued"
        async with resident.places.hold():
            job.phase = "prefill"
            await answer(job)
    close = plan.get(faults.CloseAfter)
    if close is not None:
        raise HangUp(reset=close.reset)


def _resident(state: NeuronState, head: Head, plan: FaultPlan) -> Resident | None:
    found = state.loaded(head.model)
    if found is None and faults.AnyModel in plan:
        return next((state.loaded(model_id) for model_id in state.residents if state.loaded(model_id)), None)
    return found


def _form(request: SimRequest) -> Form:
    content_type = next((value for name, value in request.headers if name == "content-type"), "")
    try:
        return parse(content_type, request.body)
    except ValueError as fault:
        raise SimRefusal(400, f"invalid form: {fault}") from None


def _head_of(form: Form) -> Head:
    if "model" not in form.fields:
        raise SimRefusal(400, "invalid form: no model")
    return Head(form.fields["model"], form.fields.get("stream", "").lower() == "true")


def _log(state: NeuronState, exchange: SimExchange, head: Head, form: Form | None) -> None:
    request = exchange.request
    state.counters["requests"] += 1
    state.requests.append(
        Received(
            at=trio.current_time(),
            path=request.path,
            model=head.model,
            stream=bool(head.stream),
            headers=request.headers,
            body=request.body if len(request.body) <= _BODY_KEPT_BYTES else b"",
            body_bytes=len(request.body),
            sha256=hashlib.sha256(request.body).hexdigest(),
            files=form.file_sha256 if form is not None else (),
        )
    )


@contextmanager
def _noting_disconnect(job: Job) -> Iterator[None]:
    """Count the request, and note a client that disconnects before the end. Synchronous, so atomic."""
    try:
        yield
    finally:
        left_at = job.exchange.client_left_at
        if job.phase == "done":
            job.state.counters["completed"] += 1
        elif left_at is not None:
            request_id = next((value for name, value in job.exchange.request.headers if name == "x-request-id"), None)
            job.state.counters["cancelled"] += 1
            job.state.cancelled.append(Cancelled(left_at, job.head.model, job.phase, bool(job.head.stream), request_id))


async def _apply_early_faults(job: Job) -> None:
    """Apply the faults that come before any answer byte."""
    exchange, plan = job.exchange, job.plan
    job.phase = "hang"
    if hang := plan.get(faults.Hang):
        await _silence(job, hang.seconds)
    if refuse := plan.get(faults.Refuse):
        raise HangUp(reset=refuse.reset)
    if garbage := plan.get(faults.Garbage):
        await exchange.raw(garbage.text.encode())
        raise HangUp
    if big := plan.get(faults.BigHeaders):
        await exchange.raw(b"HTTP/1.1 200 OK\r\nx-padding: " + b"x" * big.size_bytes + b"\r\n\r\n")
        raise HangUp
    if informational := plan.get(faults.Informational):
        for _ in range(informational.count):
            await exchange.inform(informational.status)
    if error := plan.get(faults.HttpError):
        await _fail(exchange, error)


async def _fail(exchange: SimExchange, error: faults.HttpError) -> None:
    if error.detail:
        detail = [{"type": "extra_forbidden", "loc": ["body"], "msg": error.text}]
        await exchange.respond_json(error.status, {"detail": detail})
        raise HangUp
    if error.numeric:
        body = {"code": error.status, "message": error.text, "type": "server_error"}
        await exchange.respond_json(error.status, {"error": body})
        raise HangUp
    if not error.plain:
        raise SimRefusal(error.status, error.text, retry_after_s=error.retry_after_s)
    headers = [] if error.retry_after_s is None else [("retry-after", str(error.retry_after_s))]
    await exchange.respond(error.status, error.text.encode(), "text/plain; charset=utf-8", headers)
    raise HangUp  # as real engines do after a crash in a handler


async def _silence(job: Job, seconds: float | None) -> None:
    if seconds is None:
        await trio.sleep_forever()
    else:
        await trio.sleep(job.state.real_s(seconds))


# ---- text


async def _chat(job: Job) -> None:
    await generate(job, _parsed(shapes.chat, job))


async def _responses(job: Job) -> None:
    await generate(job, _parsed(responses.answer, job))


async def _completion(job: Job) -> None:
    await generate(job, _parsed(shapes.completion, job))


def _parsed(shape: Callable[[SimModel, bytes], shapes.Generation], job: Job) -> shapes.Generation:
    try:
        generation = shape(job.model, job.exchange.request.body)
    except msgspec.MsgspecError as fault:
        raise SimRefusal(400, f"invalid request: {fault}") from None
    prompt_tokens = len(generation.prompt)
    limit = min(job.model.context, job.state.max_prompt_tokens or job.model.context)
    if prompt_tokens > limit:
        raise SimRefusal(400, f"prompt of {prompt_tokens} tokens exceeds the context length of {limit}")
    return generation


async def generate(job: Job, generation: shapes.Generation) -> None:
    """Send the answer at the model's pace."""
    cached = job.resident.remember(generation.prompt)  # reported only: a cached prefix does not speed the answer up
    if generation.stream:
        await _stream(job, generation, cached)
        return
    due = Due(job, len(generation.prompt))
    await job.state.sleep_until(due.first)
    job.phase = "decode"
    await job.state.sleep_until(partial(due.token, len(generation.deltas)))
    await send_whole(job, generation.whole(job.voice, cached))


class Due:
    """When each token of an answer is due, by Trio's clock, counted from now."""

    def __init__(self, job: Job, prompt_tokens: int) -> None:
        silent = job.plan.get(faults.SilentPrefill)
        self._job = job
        self._prompt_tokens = prompt_tokens
        self._begun_at = trio.current_time()
        self._silence_s = silent.seconds if silent else 0.0

    def first(self) -> float:
        """When prefill is over."""
        return self._start() + self._job.real_s(self._job.model.first_token_s(self._prompt_tokens))

    def token(self, count: int) -> float:
        """When `count` tokens are generated."""
        return self._start() + self._job.real_s(self._job.model.answer_s(self._prompt_tokens, count))

    def _start(self) -> float:
        return self._begun_at + self._job.state.real_s(self._silence_s)


async def _stream(job: Job, generation: shapes.Generation, cached: int) -> None:
    due = Due(job, len(generation.prompt))
    wire = _Wire(job)
    if faults.LateHeaders in job.plan:
        await job.state.sleep_until(partial(due.token, 1))
    await wire.begin(generation, cached)
    for event in generation.opening(job.voice):
        await wire.send(event)
    for count, event in enumerate(generation.token_events(job.voice), start=1):
        await job.state.sleep_until(partial(due.token, count))
        job.phase = "decode"
        await wire.send(event)
    job.phase = "done"
    for event in generation.closing(job.voice, cached):
        await wire.send(event)
    await job.exchange.end()


class _Wire:
    """Sends a stream's events, and applies the faults that cut it."""

    def __init__(self, job: Job) -> None:
        self._exchange = job.exchange
        self._plan = job.plan
        self._job = job
        self._sent = 0

    async def begin(self, generation: shapes.Generation, cached: int) -> None:
        """Send the headers."""
        voice = self._job.voice
        headers = [("cache-control", "no-cache"), *_keep_alive(self._plan)]
        framing = Framing.CHUNKED
        if faults.UntilClose in self._plan:
            framing = Framing.CLOSE
        elif faults.ContentLength in self._plan:
            framing = Framing.LENGTH
            events = [*generation.opening(voice), *generation.token_events(voice), *generation.closing(voice, cached)]
            headers.append(("content-length", str(sum(map(len, events)))))
        await self._exchange.begin(200, _SSE, framing, headers)

    async def send(self, event: bytes) -> None:
        """Send one event, unless a fault cuts the stream here."""
        drop = self._plan.get(faults.Drop)
        if drop is not None and self._sent >= drop.after:
            await _break_off(self._exchange, event, drop)
        malformed = self._plan.get(faults.MalformedChunk)
        if malformed is not None and self._sent >= malformed.after:
            await self._exchange.raw(b"zz\r\n" + event + b"\r\n")
            raise HangUp
        await self._exchange.write(event)
        self._sent += 1


async def _break_off(exchange: SimExchange, event: bytes, drop: faults.Drop) -> None:
    half = event[: len(event) // 2]
    if drop.cut == "chunk":
        await exchange.raw(b"%x\r\n" % len(event) + half)
    elif drop.cut == "event":
        await exchange.write(half)
    raise HangUp(reset=drop.how == "rst")


async def send_whole(job: Job, body: bytes, content_type: str = _JSON) -> None:
    """Send a body that is not a stream, with the faults that apply to it."""
    headers = _keep_alive(job.plan)
    job.phase = "done"
    if drop := job.plan.get(faults.Drop):
        await job.exchange.begin(200, content_type, Framing.LENGTH, [*headers, ("content-length", str(len(body)))])
        await job.exchange.write(body[: len(body) // 2])
        raise HangUp(reset=drop.how == "rst")
    if faults.MalformedChunk in job.plan:
        await job.exchange.begin(200, content_type, Framing.CHUNKED, headers)
        await job.exchange.raw(b"zz\r\n" + body + b"\r\n")
        raise HangUp
    if faults.UntilClose in job.plan:
        await job.exchange.begin(200, content_type, Framing.CLOSE, headers)
        await job.exchange.write(body)
        await job.exchange.end()
    await job.exchange.respond(200, body, content_type, headers)


def _keep_alive(plan: FaultPlan) -> list[tuple[str, str]]:
    return [("connection", "keep-alive")] if faults.CloseAfter in plan else []


# ---- vectors and scores


class EmbeddingsRequest(msgspec.Struct):
    """`POST /v1/embeddings`."""

    input: str | list[str | int | list[int]]
    encoding_format: str | None = None
    dimensions: int | None = None


class RerankRequest(msgspec.Struct):
    """`POST /v1/rerank`, in the shape Jina, Cohere and vLLM share."""

    query: str
    documents: list[str | dict[str, Any]]
    top_n: int | None = None
    return_documents: bool | None = None


async def _embeddings(job: Job) -> None:
    request = read(EmbeddingsRequest, job.exchange.request.body)
    texts = _inputs(request.input)
    dim = request.dimensions or job.model.embedding_dim
    data = [
        {"object": "embedding", "index": index, "embedding": _vector(job.model.id, one, dim, request.encoding_format)}
        for index, one in enumerate(texts)
    ]
    await _compute(job, "".join(texts), {"object": "list", "data": data, "model": job.voice.model})


def _inputs(given: str | list[str | int | list[int]]) -> list[str]:
    """One text per vector wanted; ready-made token ids are taken as the text of their numbers."""
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(one, int) for one in given):
        return [str(given)]
    return [one if isinstance(one, str) else str(one) for one in given]


def _vector(model_id: str, one: str, dim: int, encoding: str | None) -> str | list[float]:
    vector = text.embedding(model_id, one, dim)
    return base64.b64encode(vector.tobytes()).decode() if encoding == "base64" else vector.tolist()


async def _rerank(job: Job) -> None:
    request = read(RerankRequest, job.exchange.request.body)
    texts = [one if isinstance(one, str) else str(one.get("text", "")) for one in request.documents]
    scored = [(text.relevance(request.query, one), index) for index, one in enumerate(texts)]
    scored.sort(key=lambda pair: (-pair[0], pair[1]))
    results: list[dict[str, Any]] = [
        {"index": index, "relevance_score": score} for score, index in scored[: request.top_n or len(scored)]
    ]
    if request.return_documents:
        for result in results:
            result["document"] = {"text": texts[result["index"]]}
    prompt = request.query + "".join(texts)
    answer_id = text.identifier("rerank", job.model.id, prompt)
    await _compute(job, prompt, {"id": answer_id, "model": job.voice.model, "results": results})


async def _compute(job: Job, prompt: str, answer: dict[str, Any]) -> None:
    """Answer a request that generates no tokens: prefill only."""
    count = len(text.tokens(prompt))
    await job.state.sleep_until(Due(job, count).first)
    usage = {"prompt_tokens": count, "total_tokens": count}
    await send_whole(job, msgspec.json.encode({**answer, "usage": usage}))


def read(kind: type[T], body: bytes) -> T:
    """Decode a request. Raises SimRefusal with status 400."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as fault:
        raise SimRefusal(400, f"invalid request: {fault}") from None


ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "/v1/chat/completions": _chat,
        "/v1/responses": _responses,
        "/v1/completions": _completion,
        "/v1/embeddings": _embeddings,
        "/v1/rerank": _rerank,
    }
)
"""Text endpoints; the others are in `media.py`."""
