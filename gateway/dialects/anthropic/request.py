"""A Messages request as a chat completions request. Pure; reading is `incoming`'s, routing knows nothing of it.

Every turn is translated on its own, never moved, merged or changed for what comes after it. So the outgoing messages
of turn n+1 begin with those of turn n, byte for byte, and the neuron's prefix cache holds (lessons: "every turn
misses the prefix cache"). For the same reason a string and a list of one text block come out alike: clients change
the one into the other when they move their `cache_control` marks.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects import token_estimate
from gateway.dialects.anthropic import incoming, signature, tools
from gateway.dialects.anthropic.answer import Asked
from gateway.dialects.anthropic.incoming import Block, Content, Message, Request, Source
from gateway.dialects.json_splice import ModelField, locate
from gateway.dialects.validate import read, refusal

__all__ = ["PLAIN", "Backend", "Translated", "translate"]

Outgoing = dict[str, Any]


class Translated:
    """A request that has been read and found good.

    Attributes:
        model: The name as the client sent it, for `catalogue.resolve`.
        stream: Whether the client asked for a stream.
        stop_sequences: Texts that end the answer; it tells whether one of them was met.
        thinking: True if the client asked for thinking, False if it asked for none, None if it said nothing.
        input_tokens: An estimate (see `dialects.tokens`), for `message_start` and for `/v1/messages/count_tokens`.
    """

    __slots__ = ("_encoded", "_request", "input_tokens", "model", "stop_sequences", "stream", "thinking")

    def __init__(self, model: str, stream: bool, request: Request) -> None:
        self._request = request
        self.model = model
        self.stream = stream
        self.stop_sequences = _stop_sequences(request.stop_sequences)
        self.thinking = None if request.thinking is None else request.thinking.type != "disabled"
        messages = _messages(request, PLAIN)
        self._encoded = {PLAIN: (msgspec.json.encode(messages), self._parameters(PLAIN))}
        self.input_tokens = self._estimate(messages)

    def encode(self, model: str, backend: Backend = PLAIN) -> bytes:
        """The outgoing body for a backend that knows the model by this name.

        May be called again for another backend: what was built is kept, one for every kind of backend.
        """
        if backend not in self._encoded:
            messages = msgspec.json.encode(_messages(self._request, backend))
            self._encoded[backend] = messages, self._parameters(backend)
        messages, parameters = self._encoded[backend]
        return msgspec.json.encode({"model": model, "messages": msgspec.Raw(messages), **parameters})

    def asked(self, request_id: str, model: str) -> Asked:
        """What the answer's translator has to know: thoughts are shown unless the client said that it wants none."""
        return Asked(request_id, model, self.input_tokens, self.stop_sequences, self.thinking is not False)

    def _estimate(self, messages: list[Outgoing]) -> int:
        encoded, parameters = self._encoded[PLAIN]
        images = list(_image_urls(messages))
        offered = msgspec.json.encode(parameters.get("tools", ()))
        return token_estimate.estimate(len(encoded) + len(offered) - sum(map(len, images)), len(images))

    def _parameters(self, backend: Backend) -> Outgoing:
        """Everything but `model` and `messages`, in a fixed order."""
        request = self._request
        found: Outgoing = {
            "max_tokens": None if request.max_tokens is None else max(1, request.max_tokens),  # 0 is "warm the cache"
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop": self.stop_sequences or None,
            "user": _user_id(request.metadata),
            "response_format": _response_format(request.output_config),
        }
        found |= tools.parameters(request)
        found |= self._thinking_parameters(backend)
        if self.stream:
            found |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in found.items() if value is not None}

    def _thinking_parameters(self, backend: Backend) -> Outgoing:
        if self.thinking is None or backend.thinking_switch == "none":
            return {}
        if backend.thinking_switch == "chat_template_kwargs":
            return {"chat_template_kwargs": {"enable_thinking": self.thinking}}
        return {"reasoning_effort": _effort(self._request) if self.thinking else "none"}


def translate(body: bytes, model: ModelField | None = None) -> Translated:
    """Read a body of `/v1/messages` or `/v1/messages/count_tokens`, whose `model` may have been located already.

    Raises:
        MalformedJson, MissingModelField: As for every other endpoint (`gateway.dialects.json_splice.locate`).
        BadRequest: Something in it cannot be understood or passed on; message and `param` name its path.
    """
    model = locate(body) if model is None else model
    request = read(incoming.request_decoder, body)
    if not request.messages:
        raise refusal("messages", "at least one message is required")
    return Translated(model.name, model.stream, request)


# Messages...


def _messages(request: Request, backend: Backend) -> list[Outgoing]:
    messages: list[Outgoing] = []
    if system := _system_text(request.system, "system"):
        messages.append({"role": "system", "content": system})
    for index, message in enumerate(request.messages):
        as_system = not messages or backend.system_anywhere
        messages.extend(_turn(message, f"messages.{index}", as_system=as_system, thoughts=backend.reasoning_content))
    return messages


def _turn(message: Message, path: str, *, as_system: bool, thoughts: bool) -> Iterable[Outgoing]:
    """The outgoing messages of one turn: one, or more where tools have answered."""
    content_path = f"{path}.content"
    match message.role:
        case "user":
            return _user_turn(message.content, content_path)
        case "assistant":
            return [_assistant_turn(message.content, content_path, thoughts=thoughts)]
        case "system" | "developer":
            return [_system_turn(message.content, content_path, as_system=as_system)]
    raise refusal(f"{path}.role", f"must be `user`, `assistant` or `system`, not `{message.role}`")


def _system_text(content: Content, path: str) -> str:
    return "\n".join(
        block.text
        for _, block in incoming.blocks(content, path)
        if isinstance(block.text, str) and not block.text.startswith(_BILLING_HEADER)
    )


_BILLING_HEADER = "x-anthropic-billing-header:"
"""A popular coding CLI puts its telemetry first into the system prompt, with a hash that changes every turn. It is
meant for Anthropic's servers, no model reads it, and passed on it voids the prefix cache from the first token."""


def _system_turn(content: Content, path: str, *, as_system: bool) -> Outgoing:
    told = [_system_text(content, path), *(_told(change) for change in tools.changes(content, path))]
    text = "\n".join(filter(None, told))
    if as_system:
        return {"role": "system", "content": text}
    return {"role": "user", "content": f"<system-reminder>\n{text}\n</system-reminder>"}


def _told(change: tools.Change) -> str:
    return _AVAILABLE.format(change.name) if change.added else f"[tool {change.name} is no longer available]"


_AVAILABLE = "[tool {} is available]"


def _user_turn(content: Content, path: str) -> Iterator[Outgoing]:
    """Tools answer first: chat completions wants that right after the call, Messages allows it anywhere in the turn."""
    parts: list[Outgoing] = []
    answered = False
    for place, block in incoming.blocks(content, path):
        if block.type == "tool_result":
            answer, pictures = _tool_answer(block, place)
            yield answer
            parts += pictures
            answered = True
        else:
            parts += _parts(block, place)
    if parts or not answered:
        yield {"role": "user", "content": _joined(parts)}


def _assistant_turn(content: Content, path: str, *, thoughts: bool) -> Outgoing:
    """Texts are joined without a gap: the API cuts one text into blocks where citations begin and end."""
    text, thought, calls = "", "", []
    for place, block in incoming.blocks(content, path):
        if block.type == "tool_use":
            calls.append(_tool_call(block, place))
        elif block.type == "thinking":
            if isinstance(block.thinking, str) and signature.is_genuine(block.thinking, block.signature):
                thought += block.thinking
        elif isinstance(block.text, str):
            text += block.text
    message: Outgoing = {"role": "assistant", "content": text if text or not calls else None}
    if thought and thoughts:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: Block, path: str) -> Outgoing:
    if not isinstance(block.id, str) or not isinstance(block.name, str):
        raise refusal(path, "a tool_use block needs a string `id` and a string `name`")
    function = {"name": block.name, "arguments": _arguments(block.input, f"{path}.input")}
    return {"id": block.id, "type": "function", "function": function}


def _arguments(value: msgspec.Raw, path: str) -> str:
    """An object's JSON as the client wrote it; some clients send the JSON as a string, or nothing for no arguments."""
    text = bytes(value).strip()
    if text.startswith(b'"'):
        text = read(_string_decoder, text, path).strip().encode()
    if text in {b"", b"null"}:
        return "{}"
    if not text.startswith(b"{"):
        raise refusal(path, "must be an object")
    return text.decode()


_string_decoder = msgspec.json.Decoder(str)


def _tool_answer(block: Block, path: str) -> tuple[Outgoing, list[Outgoing]]:
    """The `tool` message, and what it cannot hold: pictures, which go into the user message behind it, labelled."""
    if not isinstance(block.tool_use_id, str):
        raise refusal(path, "a tool_result block needs a string `tool_use_id`")
    texts: list[str] = []
    pictures: list[Outgoing] = []
    for place, inner in incoming.nested(block.content, f"{path}.content"):
        for part in _parts(inner, place):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                pictures += [_text(f"[image from the result of tool call {block.tool_use_id}]"), part]
    text = "\n".join(texts) or ("[image, see below]" if pictures else "")
    if block.is_error is True:
        text = f"Error: {text}" if text else "Error"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}, pictures


def _joined(parts: list[Outgoing]) -> str | list[Outgoing]:
    """Texts as one string, which every engine and template takes; a list only where there are pictures."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _text(text: str) -> Outgoing:
    return {"type": "text", "text": text}


# Parts of a message...


def _parts(block: Block, path: str) -> list[Outgoing]:
    """What a block says to a model. A type nobody here knows says its `text`, or nothing."""
    match block.type:
        case "image":
            return [_image(_source(block, path), f"{path}.source")]
        case "document":
            return _document(block, path)
        case "search_result":
            return [_text("\n".join(_search_result(block, path)))]
        case "tool_reference":
            return [_text(_AVAILABLE.format(block.tool_name))]
        case "thinking" | "redacted_thinking":
            return []
    return [_text(block.text)] if isinstance(block.text, str) else []


def _source(block: Block, path: str) -> Source:
    if not block.source:
        raise refusal(f"{path}.source", "is missing")
    return read(incoming.source_decoder, block.source, f"{path}.source")


def _image(source: Source, path: str) -> Outgoing:
    match source:
        case Source(type="base64", media_type=str(media_type), data=str(data)):
            url = f"data:{media_type};base64,{data}"
        case Source(type="url", url=str(url)):
            pass
        case Source(type="base64"):
            raise refusal(path, "a base64 source needs a string `media_type` and a string `data`")
        case Source(type="url"):
            raise refusal(path, "a url source needs a string `url`")
        case _:
            raise refusal(path, f"an image must be of type `base64` or `url`, not `{source.type}`")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: Block, path: str) -> list[Outgoing]:
    title = [_text(block.title)] if isinstance(block.title, str) and block.title else []
    source, source_path = _source(block, path), f"{path}.source"
    if source.type == "content":
        content = incoming.nested(source.content, f"{source_path}.content")
        return title + [part for place, inner in content for part in _parts(inner, place)]
    return [*title, _text(_document_text(source, source_path))]


def _document_text(source: Source, path: str) -> str:
    """Documents are passed on where they are text; silence about one that is not would be a lie to the model."""
    match source:
        case Source(type="text", data=str(text)):
            return text
        case Source(type="base64", media_type=str(media_type), data=str(data)) if media_type.startswith("text/"):
            try:
                return base64.b64decode(data).decode("utf-8", "replace")
            except binascii.Error as error:
                raise refusal(f"{path}.data", f"is not base64: {error}") from None
    kind = source.media_type or source.type
    raise refusal(path, f"a document of type `{kind}` cannot be passed on: send its text")


def _search_result(block: Block, path: str) -> Iterator[str]:
    if isinstance(block.title, str):
        yield block.title
    if bytes(block.source).startswith(b'"'):
        yield read(_string_decoder, block.source, f"{path}.source")
    for _, inner in incoming.nested(block.content, f"{path}.content"):
        if isinstance(inner.text, str):
            yield inner.text


def _image_urls(messages: Iterable[Outgoing]) -> Iterator[str]:
    for message in messages:
        if isinstance(message["content"], list):
            yield from (part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url")


# Parameters...


def _stop_sequences(given: str | list[str] | None) -> tuple[str, ...]:
    return tuple(filter(None, [given] if isinstance(given, str) else given or ()))


def _user_id(metadata: object) -> str | None:
    """Opaque to us: some clients send a string with JSON in it, and it stays that string."""
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    if user_id is None or isinstance(user_id, str):
        return user_id
    return msgspec.json.encode(user_id).decode()


def _response_format(config: incoming.OutputConfig | None) -> Outgoing | None:
    if config is None or config.format is None or not tools.is_object(config.format.schema):
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": config.format.schema}}


def _effort(request: Request) -> str:
    """What the client said, else by the budget it gave: OpenAI's three steps have no numbers of their own."""
    effort = None if request.output_config is None else request.output_config.effort
    if effort in {"low", "medium", "high"}:
        return str(effort)
    budget_tokens = None if request.thinking is None else request.thinking.budget_tokens
    if effort is not None or budget_tokens is None:
        return "high" if effort is not None else "medium"
    return "low" if budget_tokens <= 4096 else "medium" if budget_tokens <= 16384 else "high"
