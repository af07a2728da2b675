"""A Messages request as a chat completions request. `request_types` reads it, `tools` chooses the tools.

Each turn is translated on its own; a later turn never changes, moves or merges it. The outgoing messages of turn n+1
therefore begin with the bytes of those of turn n, and the neuron's prefix cache stays valid; otherwise the neuron
would process the whole conversation again at every turn. For the same reason a string and a list of one text block
give the same bytes: clients turn one into the other when they move their `cache_control` marks.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator

import msgspec

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.anthropic import request_types, signature
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.request_types import (
    MessagesBlock,
    MessagesContent,
    MessagesOutputConfig,
    MessagesRequest,
    MessagesSource,
    MessagesTurn,
)
from gateway.dialects.anthropic.tools import ToolChange, tool_changes, tool_parameters
from gateway.dialects.chat_request import content_of, estimate_tokens, text_part
from gateway.dialects.fields import decode_field, invalid
from gateway.dialects.json_splice import ModelField, locate
from gateway.dialects.loose_json import JsonObject, is_object

__all__ = ["MessagesAsChat", "translate"]


class MessagesAsChat:
    """A valid Messages request, ready to be written as a chat completions request.

    Attributes:
        input_tokens: An estimate (see `token_estimate`), for `message_start` and `/v1/messages/count_tokens`.
    """

    __slots__ = ("_encoded", "_request", "_stop_sequences", "_stream", "_thinking", "input_tokens")

    def __init__(self, request: MessagesRequest, *, stream: bool) -> None:
        self._request = request
        self._stream = stream
        self._stop_sequences = _stop_sequences(request.stop_sequences)
        self._thinking = None if request.thinking is None else request.thinking.type != "disabled"  # None: not said
        messages = _messages(request, PLAIN)
        encoded, parameters = msgspec.json.encode(messages), self._parameters(PLAIN)
        self._encoded = {PLAIN: (encoded, parameters)}
        self.input_tokens = estimate_tokens(messages, encoded, parameters.get("tools", ()))

    def encode(self, model: str, backend: Backend = PLAIN) -> bytes:
        """The outgoing body for a backend of this kind that knows the model as `model`.

        A retry may call it again for another backend; the messages for each kind of backend are kept.

        Raises:
            BadRequest: This kind of backend cannot be sent the request; names the field.
        """
        if backend not in self._encoded:
            messages = msgspec.json.encode(_messages(self._request, backend))
            self._encoded[backend] = messages, self._parameters(backend)
        messages, parameters = self._encoded[backend]
        return msgspec.json.encode({"model": model, "messages": msgspec.Raw(messages), **parameters})

    def context(self, request_id: str, model: str) -> MessagesContext:
        """What the answer's translation needs. Reasoning is shown unless the client disabled thinking."""
        return MessagesContext(request_id, model, self.input_tokens, self._stop_sequences, self._thinking is not False)

    def _parameters(self, backend: Backend) -> JsonObject:
        """Everything but `model` and `messages`, in a fixed order."""
        request = self._request
        parameters: JsonObject = {
            # Anthropic's API takes 0 to warm its cache; engines reject it.
            "max_tokens": None if request.max_tokens is None else max(1, request.max_tokens),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "top_k": request.top_k,
            "stop": self._stop_sequences or None,
            "user": _user_id(request.metadata),
            "response_format": _response_format(request.output_config),
        }
        parameters |= tool_parameters(request)
        parameters |= self._thinking_parameters(backend)
        if self._stream:
            parameters |= {"stream": True, "stream_options": {"include_usage": True}}
        return {name: value for name, value in parameters.items() if value is not None}

    def _thinking_parameters(self, backend: Backend) -> JsonObject:
        if self._thinking is None or backend.thinking_switch == "none":
            return {}
        if backend.thinking_switch == "chat_template_kwargs":
            return {"chat_template_kwargs": {"enable_thinking": self._thinking}}
        return {"reasoning_effort": _effort(self._request) if self._thinking else "none"}


def translate(body: bytes, model: ModelField | None = None) -> MessagesAsChat:
    """Read a body of `/v1/messages` or `/v1/messages/count_tokens`. `model` is its model field if already located.

    Raises:
        MalformedJson, MissingModelField: As `json_splice.locate`.
        BadRequest: A field is wrong or cannot be translated; the message and `param` name its path.
    """
    model = locate(body) if model is None else model
    request = decode_field(request_types.request_decoder, body)
    if not request.messages:
        raise invalid("messages", "at least one message is required")
    return MessagesAsChat(request, stream=model.stream)


# Messages...


def _messages(request: MessagesRequest, backend: Backend) -> list[JsonObject]:
    messages: list[JsonObject] = []
    if system := _system_text(request.system, "system"):
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(request.messages):
        as_system = not messages or backend.system_anywhere
        messages.extend(_turn(turn, f"messages.{index}", as_system=as_system, thoughts=backend.reasoning_content))
    return messages


def _turn(turn: MessagesTurn, path: str, *, as_system: bool, thoughts: bool) -> Iterable[JsonObject]:
    """The outgoing messages of one turn: more than one if it has tool results."""
    content_path = f"{path}.content"
    match turn.role:
        case "user":
            return _user_turn(turn.content, content_path)
        case "assistant":
            return [_assistant_turn(turn.content, content_path, thoughts=thoughts)]
        case "system" | "developer":
            return [_system_turn(turn.content, content_path, as_system=as_system)]
    raise invalid(f"{path}.role", f"must be `user`, `assistant` or `system`, not `{turn.role}`")


def _system_text(content: MessagesContent, path: str) -> str:
    return "\n".join(
        block.text
        for _, block in request_types.blocks_of(content, path)
        if isinstance(block.text, str) and not block.text.startswith(_BILLING_HEADER)
    )


_BILLING_HEADER = "x-anthropic-billing-header:"
"""A popular coding CLI begins its system prompt with telemetry for Anthropic's servers. It contains a hash that changes
every turn, so passing it on would invalidate the neuron's prefix cache from the first token."""


def _system_turn(content: MessagesContent, path: str, *, as_system: bool) -> JsonObject:
    lines = [_system_text(content, path), *map(_change_notice, tool_changes(content, path))]
    text = "\n".join(filter(None, lines))
    if as_system:
        return {"role": "system", "content": text}
    return {"role": "user", "content": f"<system-reminder>\n{text}\n</system-reminder>"}


def _change_notice(change: ToolChange) -> str:
    return _AVAILABLE.format(change.name) if change.added else f"[tool {change.name} is no longer available]"


_AVAILABLE = "[tool {} is available]"


def _user_turn(content: MessagesContent, path: str) -> Iterator[JsonObject]:
    """Tool results first: chat completions wants them right after the call, Messages allows them anywhere in a turn."""
    parts: list[JsonObject] = []
    has_result = False
    for block_path, block in request_types.blocks_of(content, path):
        if block.type == "tool_result":
            tool_message, images = _tool_message(block, block_path)
            yield tool_message
            parts += images
            has_result = True
        else:
            parts += _parts(block, block_path)
    if parts or not has_result:
        yield {"role": "user", "content": content_of(parts)}


def _assistant_turn(content: MessagesContent, path: str, *, thoughts: bool) -> JsonObject:
    """Texts are joined without a separator: the API splits one text into blocks where citations begin and end."""
    text, thought, calls = "", "", []
    for block_path, block in request_types.blocks_of(content, path):
        if block.type == "tool_use":
            calls.append(_tool_call(block, block_path))
        elif block.type == "thinking":
            if isinstance(block.thinking, str) and signature.is_genuine(block.thinking, block.signature):
                thought += block.thinking
        elif isinstance(block.text, str):
            text += block.text
    message: JsonObject = {"role": "assistant", "content": text if text or not calls else None}
    if thought and thoughts:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _tool_call(block: MessagesBlock, path: str) -> JsonObject:
    if not isinstance(block.id, str) or not isinstance(block.name, str):
        raise invalid(path, "a tool_use block must have a string `id` and a string `name`")
    function = {"name": block.name, "arguments": _arguments(block.input, f"{path}.input")}
    return {"id": block.id, "type": "function", "function": function}


def _arguments(value: msgspec.Raw, path: str) -> str:
    """An object as the client wrote it. Some clients send the object's JSON as a string, or null for no arguments."""
    text = bytes(value).strip()
    if text.startswith(b'"'):
        text = decode_field(_string_decoder, text, path).strip().encode()
    if text in {b"", b"null"}:
        return "{}"
    if not text.startswith(b"{"):
        raise invalid(path, "must be an object")
    return text.decode()


_string_decoder = msgspec.json.Decoder(str)


def _tool_message(block: MessagesBlock, path: str) -> tuple[JsonObject, list[JsonObject]]:
    """The `tool` message of a result, and the result's images with labels, for the user message that follows it.

    A `tool` message can only hold text.
    """
    if not isinstance(block.tool_use_id, str):
        raise invalid(path, "a tool_result block must have a string `tool_use_id`")
    texts: list[str] = []
    images: list[JsonObject] = []
    for inner_path, inner in request_types.nested_blocks(block.content, f"{path}.content"):
        for part in _parts(inner, inner_path):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images += [text_part(f"[image from the result of tool call {block.tool_use_id}]"), part]
    text = "\n".join(texts) or ("[image, see below]" if images else "")
    if block.is_error is True:
        text = f"Error: {text}" if text else "Error"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}, images


# Parts of a message...


def _parts(block: MessagesBlock, path: str) -> list[JsonObject]:
    """The parts that a block becomes. A block of an unknown type becomes its `text`, or nothing."""
    match block.type:
        case "image":
            return [_image(_source(block, path), f"{path}.source")]
        case "document":
            return _document(block, path)
        case "search_result":
            return [text_part("\n".join(_search_result(block, path)))]
        case "tool_reference":
            return [text_part(_AVAILABLE.format(block.tool_name))]
        case "thinking" | "redacted_thinking":
            return []
    return [text_part(block.text)] if isinstance(block.text, str) else []


def _source(block: MessagesBlock, path: str) -> MessagesSource:
    if not block.source:
        raise invalid(f"{path}.source", "is missing")
    return decode_field(request_types.source_decoder, block.source, f"{path}.source")


def _image(source: MessagesSource, path: str) -> JsonObject:
    match source:
        case MessagesSource(type="base64", media_type=str(media_type), data=str(data)):
            url = f"data:{media_type};base64,{data}"
        case MessagesSource(type="url", url=str(url)):
            pass
        case MessagesSource(type="base64"):
            raise invalid(path, "a base64 source must have a string `media_type` and a string `data`")
        case MessagesSource(type="url"):
            raise invalid(path, "a url source must have a string `url`")
        case _:
            raise invalid(path, f"the type of an image's source must be `base64` or `url`, not `{source.type}`")
    return {"type": "image_url", "image_url": {"url": url}}


def _document(block: MessagesBlock, path: str) -> list[JsonObject]:
    title = [text_part(block.title)] if isinstance(block.title, str) and block.title else []
    source, source_path = _source(block, path), f"{path}.source"
    if source.type == "content":
        content = request_types.nested_blocks(source.content, f"{source_path}.content")
        return title + [part for inner_path, inner in content for part in _parts(inner, inner_path)]
    return [*title, text_part(_document_text(source, source_path))]


def _document_text(source: MessagesSource, path: str) -> str:
    """A document's text. Other documents are rejected: leaving one out would change the question."""
    match source:
        case MessagesSource(type="text", data=str(text)):
            return text
        case MessagesSource(type="base64", media_type=str(kind), data=str(data)) if kind.startswith("text/"):
            try:
                return base64.b64decode(data).decode("utf-8", "replace")
            except binascii.Error as error:
                raise invalid(f"{path}.data", f"is not valid base64: {error}") from None
    kind = source.media_type or source.type
    raise invalid(path, f"a document of type `{kind}` cannot be passed to the model: send its text")


def _search_result(block: MessagesBlock, path: str) -> Iterator[str]:
    if isinstance(block.title, str):
        yield block.title
    if bytes(block.source).startswith(b'"'):
        yield decode_field(_string_decoder, block.source, f"{path}.source")
    for _, inner in request_types.nested_blocks(block.content, f"{path}.content"):
        if isinstance(inner.text, str):
            yield inner.text


# Parameters...


def _stop_sequences(value: str | list[str] | None) -> tuple[str, ...]:
    return tuple(filter(None, [value] if isinstance(value, str) else value or ()))


def _user_id(metadata: object) -> str | None:
    """`metadata.user_id`, unread. Some clients put JSON into that string, and some send the JSON itself."""
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    if user_id is None or isinstance(user_id, str):
        return user_id
    return msgspec.json.encode(user_id).decode()


def _response_format(config: MessagesOutputConfig | None) -> JsonObject | None:
    if config is None or config.format is None or not is_object(config.format.schema):
        return None
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": config.format.schema}}


def _effort(request: MessagesRequest) -> str:
    """`reasoning_effort` from the client's effort, else from its budget. The thresholds, in tokens, are the gateway's.

    OpenAI defines no token counts for its three levels.
    """
    effort = None if request.output_config is None else request.output_config.effort
    if effort in {"low", "medium", "high"}:
        return str(effort)
    budget_tokens = None if request.thinking is None else request.thinking.budget_tokens
    if effort is not None or budget_tokens is None:
        return "high" if effort is not None else "medium"
    return "low" if budget_tokens <= 4096 else "medium" if budget_tokens <= 16384 else "high"
