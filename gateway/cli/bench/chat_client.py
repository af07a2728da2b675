"""One chat request, sent and timed. Times are read as bytes arrive: a full buffer would measure the buffer."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import httpx

from gateway.cli.bench.questions import Kind, Question, Reply
from gateway.http import sse

__all__ = ["Answer", "Phase", "Sample", "Verdict", "ask"]

Phase: TypeAlias = Literal["cold", "warm-up", "probe", "question", "load"]
Verdict: TypeAlias = Literal["correct", "wrong answer", "wrong model", "failed"]
SIMULATED_FINGERPRINT = "simulated"  # `system_fingerprint` of `neuron.simulated`
_THINKING = re.compile(r"<think>.*?(?:</think>|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Sample:
    """One request and its result; a line of samples.jsonl.

    `tier` is the requested name, `target` the model it stood for. `total_s` runs from sending to the last byte,
    `first_token_s` to the first generated delta (not the role chunk), `decode_s` from there to the last one.
    `header_model` and `body_model` name the model that answered. `reason` says why the verdict is not "correct".
    """

    tier: str
    target: str
    phase: Phase
    question: str
    kind: Kind
    concurrency: int
    began_s: float
    total_s: float
    first_token_s: float | None = None
    decode_s: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    node: str | None = None
    header_model: str | None = None
    body_model: str | None = None
    simulated: bool = False
    text: str = ""
    calls: tuple[tuple[str, Any], ...] = ()
    verdict: Verdict = "correct"
    reason: str | None = None


@dataclass
class Answer:
    """What is known of one answer while it arrives. Times in seconds from sending."""

    first_token_s: float | None = None
    last_token_s: float | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    model: str | None = None
    fingerprint: str | None = None
    text: str = ""
    calls: dict[int, list[str]] = field(default_factory=dict)
    error: str | None = None
    finished: bool = False

    def read_event(self, data: bytes, at_s: float) -> None:
        """One SSE event of a chat completion."""
        if data == b"[DONE]":
            return
        event = json.loads(data)
        error = event.get("error")
        if error:
            self.error = str(error.get("message")) if isinstance(error, dict) else str(error)
        self.model = event.get("model") or self.model
        self.fingerprint = event.get("system_fingerprint") or self.fingerprint
        usage = event.get("usage") or {}
        self.tokens_in = usage.get("prompt_tokens", self.tokens_in)
        self.tokens_out = usage.get("completion_tokens", self.tokens_out)
        for choice in event.get("choices") or ():
            self._read_delta(choice.get("delta") or {}, at_s)
            self.finished = self.finished or bool(choice.get("finish_reason"))

    def _read_delta(self, delta: Mapping[str, Any], at_s: float) -> None:
        self.text += delta.get("content") or ""
        for call in delta.get("tool_calls") or ():
            name_and_arguments = self.calls.setdefault(int(call.get("index") or 0), ["", ""])
            function = call.get("function") or {}
            name_and_arguments[0] += function.get("name") or ""
            name_and_arguments[1] += function.get("arguments") or ""
        if any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")):
            self.last_token_s = at_s
            self.first_token_s = at_s if self.first_token_s is None else self.first_token_s

    def reply(self) -> Reply:
        """The answer without reasoning; the arguments of a call that are no JSON object are empty."""
        calls = tuple((name, _arguments(arguments)) for _, (name, arguments) in sorted(self.calls.items()))
        return Reply(_THINKING.sub("", self.text).strip(), calls)


def _arguments(text: str) -> dict[str, Any]:
    try:
        decoded = json.loads(text or "{}")
    except ValueError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


async def ask(
    client: httpx.AsyncClient,
    url: str,
    body: Mapping[str, Any],
    *,
    tier: str,
    target: str,
    phase: Phase,
    question: Question,
    concurrency: int,
    run_began: float,
) -> tuple[Sample, Reply]:
    """Send one streamed request. The sample is "failed" or "correct" by then; the caller judges the reply."""
    answer, headers, began = Answer(), httpx.Headers(), time.perf_counter()
    try:
        async with client.stream("POST", f"{url}/v1/chat/completions", json=dict(body)) as response:
            headers = response.headers
            await _read(response, answer, began)
    except httpx.HTTPError as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        answer.error = f"an answer that is not OpenAI's: {error!r}"
    ended = time.perf_counter()
    if answer.error is None and not answer.finished:
        answer.error = "ended without a finish_reason"
    both = answer.first_token_s is not None and answer.last_token_s is not None
    reply = answer.reply()
    sample = Sample(
        tier=tier,
        target=target,
        phase=phase,
        question=question.id,
        kind=question.kind,
        concurrency=concurrency,
        began_s=began - run_began,
        total_s=ended - began,
        first_token_s=answer.first_token_s,
        decode_s=(answer.last_token_s or 0) - (answer.first_token_s or 0) if both else None,
        tokens_in=answer.tokens_in,
        tokens_out=answer.tokens_out,
        node=headers.get("x-cortex-node"),
        header_model=headers.get("x-cortex-model"),
        body_model=answer.model,
        simulated=answer.fingerprint == SIMULATED_FINGERPRINT,
        text=reply.text,
        calls=reply.calls,
        verdict="correct" if answer.error is None else "failed",
        reason=answer.error,
    )
    return sample, reply


async def _read(response: httpx.Response, answer: Answer, began: float) -> None:
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        body = await response.aread()
        answer.error = f"status {response.status_code}: {body[:300].decode(errors='replace')}"
        return
    reader = sse.Reader()
    async for chunk in response.aiter_raw():
        at_s = time.perf_counter() - began
        for event in reader.feed(chunk):
            if event.data is not None:
                answer.read_event(event.data, at_s)
