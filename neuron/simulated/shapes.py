"""OpenAI's request and answer shapes for text: from a body to a `Generation`, and from that to JSON or SSE. No I/O.

Shapes as in https://platform.openai.com/docs/api-reference; where real engines differ (usage in odd places, no
`[DONE]`) the differences are switches of `Voice`, set by faults.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from neuron.simulated import text
from neuron.simulated.hardware import SimModel

_IMAGE_TOKENS = 256  # tokens of an image, whatever its size
CREATED = 1_767_225_600  # 2026-01-01: answers are deterministic, and the simulator has no wall clock
_ENCODE = msgspec.json.Encoder().encode


# ---- requests: only what changes the answer is read


class StreamOptions(msgspec.Struct):
    """`stream_options`."""

    include_usage: bool | None = None


class SimMessage(msgspec.Struct):
    """One of `messages`."""

    role: str
    content: str | list[dict[str, Any]] | None = None
    tool_calls: list[dict[str, Any]] | None = None


class SimFunction(msgspec.Struct):
    """The function of a tool."""

    name: str
    parameters: dict[str, Any] | None = None


class SimTool(msgspec.Struct):
    """One of `tools`."""

    function: SimFunction


class TextRequest(msgspec.Struct, kw_only=True):
    """Fields that chat and completions share."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def limit(self) -> int | None:
        """The most tokens the answer may have."""
        return self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens

    @property
    def stops(self) -> list[str]:
        """The texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())


class ChatRequest(TextRequest, kw_only=True):
    """`POST /v1/chat/completions`."""

    messages: list[SimMessage]
    tools: list[SimTool] | None = None
    tool_choice: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def schema(self) -> dict[str, Any] | None:
        """The JSON schema the answer must match, if any."""
        wanted = self.response_format or {}
        if wanted.get("type") == "json_object":
            return {"properties": {"answer": {"type": "string"}}}
        found = (wanted.get("json_schema") or {}).get("schema") if wanted.get("type") == "json_schema" else None
        return found if isinstance(found, dict) else None


class CompletionRequest(TextRequest, kw_only=True):
    """`POST /v1/completions`."""

    prompt: str | list[str]


# ---- answers


@dataclass(frozen=True, slots=True)
class Voice:
    """How an answer is phrased. `model` is the name it reports."""

    model: str
    usage: Literal["own", "finish", "choices", "none"] = "own"
    done: bool = True
    created: float = CREATED


@dataclass(frozen=True, slots=True)
class Generation:
    """One answer: a prompt, and one delta per token.

    `deltas` are chat deltas; a completion's are `{"content": text}` and become `text`.
    """

    id: str
    chat: bool
    stream: bool
    include_usage: bool
    prompt: tuple[str, ...]
    deltas: tuple[dict[str, Any], ...]
    finish_reason: str

    def usage(self, cached: int) -> dict[str, Any]:
        """The `usage` object, where `cached` prompt tokens came from the prefix cache."""
        usage = {
            "prompt_tokens": len(self.prompt),
            "completion_tokens": len(self.deltas),
            "total_tokens": len(self.prompt) + len(self.deltas),
            "prompt_tokens_details": {"cached_tokens": cached},
        }
        if thought := sum("reasoning_content" in delta for delta in self.deltas):
            usage["completion_tokens_details"] = {"reasoning_tokens": thought}
        return usage

    def opening(self, voice: Voice) -> list[bytes]:
        """The event before any token: the role chunk."""
        return [self._event(voice, {"role": "assistant", "content": ""}, None)] if self.chat else []

    def token_events(self, voice: Voice) -> Iterator[bytes]:
        """One event per token."""
        return (self._event(voice, delta, None) for delta in self.deltas)

    def closing(self, voice: Voice, cached: int) -> list[bytes]:
        """The events after the last token: the finish chunk, usage, `[DONE]`."""
        usage = self.usage(cached) if self.include_usage or voice.usage in {"finish", "choices"} else None
        events = [self._event(voice, {}, self.finish_reason, usage if voice.usage == "finish" else None)]
        if usage is not None and voice.usage == "own":
            events.append(sse({**self._head(voice, "chunk"), "choices": [], "usage": usage}))
        if usage is not None and voice.usage == "choices":
            events.append(self._event(voice, {}, None, usage))
        return [*events, b"data: [DONE]\n\n"] if voice.done else events

    def whole(self, voice: Voice, cached: int) -> bytes:
        """The answer as one JSON body."""
        choice: dict[str, Any] = {"index": 0}
        if self.chat:
            choice["message"] = self._message()
        else:
            choice["text"] = _joined(self.deltas, "content")
        choice |= {"logprobs": None, "finish_reason": self.finish_reason}
        return _ENCODE({**self._head(voice, ""), "choices": [choice], "usage": self.usage(cached)})

    def _head(self, voice: Voice, chunk: str) -> dict[str, Any]:
        kind = f"chat.completion.{chunk}".rstrip(".") if self.chat else "text_completion"
        return {
            "id": self.id,
            "object": kind,
            "created": voice.created,
            "model": voice.model,
            "system_fingerprint": "simulated",
        }

    def _event(
        self, voice: Voice, delta: dict[str, Any], finish_reason: str | None, usage: dict[str, Any] | None = None
    ) -> bytes:
        piece = {"delta": delta} if self.chat else {"text": delta.get("content", "")}
        choice = {"index": 0, **piece, "logprobs": None, "finish_reason": finish_reason}
        body = {**self._head(voice, "chunk"), "choices": [choice]}
        return sse(body if usage is None else {**body, "usage": usage})

    def _message(self) -> dict[str, Any]:
        calls = _joined_calls(self.deltas)
        message: dict[str, Any] = {"role": "assistant", "content": _joined(self.deltas, "content")}
        if calls:
            message |= {"content": None, "tool_calls": calls}
        if thought := _joined(self.deltas, "reasoning_content"):
            message["reasoning_content"] = thought
        return message


def chat(model: SimModel, body: bytes) -> Generation:
    """The answer to a chat request.

    Raises:
        msgspec.MsgspecError: the body is no chat request.
    """
    return chat_answer(model, msgspec.json.decode(body, type=ChatRequest))


def chat_answer(model: SimModel, request: ChatRequest) -> Generation:
    """The same for a decoded request."""
    prompt = chat_prompt(request)
    whole_prompt = "".join(prompt)
    calls = _tool_calls(model, request, whole_prompt)
    thought = text.tokens(text.reasoning(model.id, whole_prompt)) if _reasons(model, request) else []
    answer: list[str] = []
    finish_reason = "stop"
    if not calls:
        answer, finish_reason = _content_tokens(model, request, whole_prompt, _last_user(request.messages))
    if request.schema is not None and not calls:
        answer = _as_json(request.schema, answer)
    deltas = [{"reasoning_content": token} for token in thought]
    deltas += _call_deltas(calls) or [{"content": token} for token in answer]
    return _generation(request, prompt, deltas, "tool_calls" if calls else finish_reason, model, chat=True)


def completion(model: SimModel, body: bytes) -> Generation:
    """The answer to a completions request; of several prompts the first is answered.

    Raises:
        msgspec.MsgspecError: the body is no completions request.
    """
    request = msgspec.json.decode(body, type=CompletionRequest)
    prompt = request.prompt if isinstance(request.prompt, str) else "".join(request.prompt[:1])
    answer, finish_reason = _content_tokens(model, request, prompt, prompt)
    deltas = [{"content": token} for token in answer]
    return _generation(request, tuple(text.tokens(prompt)), deltas, finish_reason, model, chat=False)


def _generation(
    request: TextRequest,
    prompt: tuple[str, ...],
    deltas: list[dict[str, Any]],
    finish_reason: str,
    model: SimModel,
    *,
    chat: bool,
) -> Generation:
    limit = min(model.output, max(request.limit, 1) if request.limit is not None else model.output)
    return Generation(
        id=text.identifier("chatcmpl" if chat else "cmpl", model.id, *prompt),
        chat=chat,
        stream=bool(request.stream),
        include_usage=request.include_usage,
        prompt=prompt,
        deltas=tuple(deltas[:limit]),
        finish_reason=finish_reason if len(deltas) <= limit else "length",
    )


# ---- content


def _content_tokens(model: SimModel, request: TextRequest, prompt: str, last_user: str) -> tuple[list[str], str]:
    answer = text.answer(model.id, prompt, last_user)
    ends = [at for stop in request.stops if stop and (at := answer.find(stop)) >= 0]
    return text.tokens(answer[: min(ends)] if ends else answer), "stop"


def _as_json(schema: dict[str, Any], answer: list[str]) -> list[str]:
    """An example of the requested JSON; text that is JSON already stays as it is."""
    try:
        msgspec.json.decode("".join(answer), type=msgspec.Raw)
    except msgspec.DecodeError:
        return text.tokens(_ENCODE(_example(schema, schema.get("$defs") or {})).decode())
    return answer


def _reasons(model: SimModel, request: ChatRequest) -> bool:
    """Whether the model reasons: by default yes, if it can and the request does not switch it off."""
    if not model.reasoning:
        return False
    if request.reasoning_effort is not None:
        return request.reasoning_effort != "none"
    wish = (request.chat_template_kwargs or {}).get("enable_thinking")
    return model.reasons_by_default if wish is None else bool(wish)


def chat_prompt(request: ChatRequest) -> tuple[str, ...]:
    """The prompt after the chat template: tools first, four tokens around every message."""
    prompt: list[str] = []
    if request.tools:
        prompt += text.tokens(_ENCODE([tool.function for tool in request.tools]).decode())
    for message in request.messages:
        prompt += ["<|im_start|>", message.role, "\n", *_message_tokens(message), "<|im_end|>"]
    return tuple(prompt)


def _message_tokens(message: SimMessage) -> list[str]:
    found = text.tokens(_content(message))
    if isinstance(message.content, list):
        pictures = sum(part.get("type") == "image_url" for part in message.content)
        found += ["<|image|>"] * (_IMAGE_TOKENS * pictures)
    if message.tool_calls:
        found += text.tokens(_ENCODE(message.tool_calls).decode())
    return found


def _content(message: SimMessage) -> str:
    if isinstance(message.content, list):
        return "\n".join(str(part.get("text", "")) for part in message.content if part.get("type") == "text")
    return message.content or ""


def _last_user(messages: list[SimMessage]) -> str:
    return next((_content(message) for message in reversed(messages) if message.role == "user"), "")


# ---- tools


def _tool_calls(model: SimModel, request: ChatRequest, prompt: str) -> list[dict[str, Any]]:
    """The calls the model makes: the tools named after "call" in a last user message, or what `tool_choice` forces."""
    if not request.tools or request.tool_choice == "none" or not model.tool_call:
        return []
    return [
        {
            "index": index,
            "id": text.identifier("call", model.id, prompt, str(index)),
            "type": "function",
            "function": {"name": tool.function.name, "arguments": _arguments(tool.function)},
        }
        for index, tool in enumerate(_wanted(request, request.tools))
    ]


def _wanted(request: ChatRequest, tools: list[SimTool]) -> list[SimTool]:
    if isinstance(request.tool_choice, dict):
        name = request.tool_choice.get("function", {}).get("name")
        return [tool for tool in tools if tool.function.name == name]
    last = request.messages[-1] if request.messages else None
    question = _content(last) if last is not None and last.role == "user" else ""
    named = [tool for tool in tools if f"call {tool.function.name}" in question]
    return named or (tools[:1] if request.tool_choice == "required" else [])


_EXAMPLES: dict[str, Any] = {"integer": 7, "number": 1.5, "boolean": True, "array": [], "object": {}, "null": None}
_NESTED = 20  # a schema may contain itself
_NULL = {"type": "null"}


def _arguments(function: SimFunction) -> str:
    """A JSON object with a value for every property of the schema."""
    schema = {"properties": {}} | (function.parameters or {})
    return _ENCODE(_example(schema, schema.get("$defs") or {})).decode()


def _example(schema: Any, defs: dict[str, Any], depth: int = 0) -> Any:
    """A value that a schema allows, as far as schemas are simple: no patterns, no bounds."""
    schema = _resolved(schema, defs) if depth < _NESTED else {}
    if fixed := schema.get("enum") or ([schema["const"]] if "const" in schema else []):
        return fixed[0]
    if isinstance(properties := schema.get("properties"), dict):
        return {name: _example(inner, defs, depth + 1) for name, inner in properties.items()}
    if schema.get("type") == "array" and schema.get("minItems"):
        return [_example(schema.get("items"), defs, depth + 1)] * int(schema["minItems"])
    kind = schema.get("type")
    return _EXAMPLES.get(str(kind[0] if isinstance(kind, list) and kind else kind), "Tbilisi")


def _resolved(schema: Any, defs: dict[str, Any]) -> dict[str, Any]:
    """The schema that a reference leads to, or the simplest of several."""
    for _ in range(_NESTED):
        if not isinstance(schema, dict):
            break
        if isinstance(reference := schema.get("$ref"), str):
            schema = defs.get(reference.rpartition("/")[2])
        elif alternatives := schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf"):
            schema = _NULL if _NULL in alternatives else alternatives[0]
        else:
            return schema
    return {}


def _call_deltas(calls: list[dict[str, Any]]) -> list[dict[str, Any]]:
    deltas = []
    for call in calls:
        function = call["function"]
        opening = {**call, "function": {"name": function["name"], "arguments": ""}}
        deltas.append({"tool_calls": [opening]})
        deltas += [
            {"tool_calls": [{"index": call["index"], "function": {"arguments": token}}]}
            for token in text.tokens(function["arguments"])
        ]
    return deltas


def _joined_calls(deltas: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    calls: dict[int, dict[str, Any]] = {}
    for delta in deltas:
        for part in delta.get("tool_calls", ()):
            if "id" in part:
                calls[part["index"]] = {
                    "id": part["id"],
                    "type": "function",
                    "function": {"name": part["function"]["name"], "arguments": ""},
                }
            else:
                calls[part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    return list(calls.values())


def _joined(deltas: tuple[dict[str, Any], ...], key: str) -> str:
    return "".join(delta.get(key, "") for delta in deltas)


def sse(value: dict[str, Any]) -> bytes:
    """One SSE event."""
    return b"data: " + _ENCODE(value) + b"\n\n"
