"""A Responses request as a chat completions request. Pure; reading is `incoming`'s, routing knows nothing of it.

Messages are `conversation`'s, tools are `tools`'s; here are the parameters, what is refused because nothing is stored,
and what the answer tells again of its request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects import token_estimate
from gateway.dialects.json_splice import ModelField, locate
from gateway.dialects.responses import conversation, incoming, tools
from gateway.dialects.responses.answer import Asked
from gateway.dialects.responses.incoming import Format, Request
from gateway.dialects.validate import read, refusal

__all__ = ["Translated", "translate"]

Outgoing = dict[str, Any]


class Translated:
    """A request that has been read and found good.

    Attributes:
        model: The name as the client sent it, for `catalogue.resolve`.
        stream: Whether the client asked for a stream.
        input_tokens: An estimate (see `dialects.tokens`), for where the neuron counts nothing.
    """

    __slots__ = ("_encoded", "_offer", "_request", "input_tokens", "model", "stream")

    def __init__(self, model: str, stream: bool, request: Request) -> None:
        self._request = request
        self.model = model
        self.stream = stream
        self._offer = tools.offer(request)
        messages = conversation.messages(request, PLAIN)
        if not messages:
            raise refusal("input", "at least one item that a model can read is required")
        self._encoded = {PLAIN: (msgspec.json.encode(messages), self._parameters(PLAIN))}
        self.input_tokens = self._estimate(messages)

    def encode(self, model: str, backend: Backend = PLAIN) -> bytes:
        """The outgoing body for a backend that knows the model by this name.

        May be called again for another backend: what was built is kept, one for every kind of backend.
        """
        if backend not in self._encoded:
            messages = msgspec.json.encode(conversation.messages(self._request, backend))
            self._encoded[backend] = messages, self._parameters(backend)
        messages, parameters = self._encoded[backend]
        return msgspec.json.encode({"model": model, "messages": msgspec.Raw(messages), **parameters})

    def asked(self, request_id: str, model: str) -> Asked:
        """What the answer's translator has to know."""
        return Asked(request_id, model, self.input_tokens, _told(self._request, self._offer), self._offer.callees)

    def _estimate(self, messages: list[Outgoing]) -> int:
        encoded, _ = self._encoded[PLAIN]
        images = list(_image_urls(messages))
        functions = msgspec.json.encode(self._offer.functions)
        return token_estimate.estimate(len(encoded) + len(functions) - sum(map(len, images)), len(images))

    def _parameters(self, backend: Backend) -> Outgoing:
        """Everything but `model` and `messages`, in a fixed order."""
        request = self._request
        found: Outgoing = {
            "max_tokens": request.max_output_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "user": request.user,
            "response_format": _response_format(request.text.format if request.text else None),
        }
        if self._offer.functions:
            found |= {
                "tools": self._offer.functions,
                "tool_choice": self._offer.choice,
                "parallel_tool_calls": request.parallel_tool_calls,
            }
        found |= _thinking(request.reasoning.effort if request.reasoning else None, backend)
        if self.stream:
            found |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in found.items() if value is not None}


def translate(body: bytes, model: ModelField | None = None) -> Translated:
    """Read a body of `/v1/responses`, whose `model` may have been located already.

    Raises:
        MalformedJson, MissingModelField: As for every other endpoint (`gateway.dialects.json_splice.locate`).
        BadRequest: Something in it cannot be understood or passed on; message and `param` name its path.
    """
    model = locate(body) if model is None else model
    request = read(incoming.request_decoder, body)
    _refuse_what_needs_a_store(request)
    return Translated(model.name, model.stream, request)


def _refuse_what_needs_a_store(request: Request) -> None:
    """Answering without the conversation, or the prompt, that was meant would look like an answer to it."""
    if request.previous_response_id:
        raise refusal("previous_response_id", conversation.NO_STORE)
    if request.conversation:
        raise refusal("conversation", conversation.NO_STORE)
    if request.prompt:
        raise refusal("prompt", "no prompt templates are kept here: send the whole input")
    if request.background is True:
        raise refusal("background", "nothing is kept here to be fetched later: leave it out, or stream")


def _image_urls(messages: Iterable[Outgoing]) -> Iterator[str]:
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")


# Parameters...


def _response_format(format_: Format | None) -> Outgoing | None:
    match format_:
        case None | Format(type="text"):
            return None
        case Format(type="json_object"):
            return {"type": "json_object"}
        case Format(type="json_schema"):
            return {"type": "json_schema", "json_schema": _json_schema(format_)}
    raise refusal("text.format.type", f"must be `text`, `json_object` or `json_schema`, not `{format_.type}`")


def _json_schema(format_: Format) -> Outgoing:
    if not bytes(format_.schema).startswith(b"{"):
        raise refusal("text.format.schema", "must be an object")
    found = {
        "name": format_.name or "answer",
        "description": format_.description,
        "schema": format_.schema,
        "strict": format_.strict,
    }
    return {name: value for name, value in found.items() if value is not None}


def _thinking(effort: str | None, backend: Backend) -> Outgoing:
    """The backend's switch. Engines that have steps have three; those below and above them count as the nearest."""
    if effort is None or backend.thinking_switch == "none":
        return {}
    if backend.thinking_switch == "chat_template_kwargs":
        return {"chat_template_kwargs": {"enable_thinking": effort not in {"none", "minimal"}}}
    return {"reasoning_effort": _STEPS.get(effort, "high")}


_STEPS = {"none": "none", "minimal": "low", "low": "low", "medium": "medium"}


# Told again...


def _told(request: Request, offered: tools.Offer) -> Outgoing:
    """The request's parameters as the API repeats them. What only its servers can do is told as not done."""
    text, reasoning = request.text, request.reasoning
    return {
        "background": False,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata or {},
        "parallel_tool_calls": request.parallel_tool_calls is not False,
        "previous_response_id": None,
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": reasoning.effort if reasoning else None, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": False,
        "temperature": request.temperature,
        "text": {
            "format": {"type": "text"} if text is None or text.format is None else _told_format(text.format),
            "verbosity": text.verbosity if text else None,
        },
        "tool_choice": _told_choice(request.tool_choice),
        "tools": offered.told,
        "top_logprobs": 0,
        "top_p": request.top_p,
        "truncation": "disabled",
        "user": request.user,
    }


def _told_format(format_: Format) -> Outgoing:
    if format_.type != "json_schema":
        return {"type": format_.type}
    return {"type": "json_schema", "description": None, "strict": None, **_json_schema(format_)}


def _told_choice(choice: str | incoming.ToolChoice | None) -> str | Outgoing:
    if choice is None or isinstance(choice, str):
        return choice or "auto"
    if choice.type == "allowed_tools":
        allowed = [{"type": tool.type, "name": tool.name} for tool in choice.tools or ()]
        return {"type": choice.type, "mode": choice.mode, "tools": allowed}
    return {"type": choice.type, "name": choice.name or (choice.function.name if choice.function else None)}
