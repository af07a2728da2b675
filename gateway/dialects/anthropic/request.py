"""A Messages request as a chat completions request. `request_types` reads it, `tools` chooses the tools.

Each turn is translated on its own; a later turn of another role never changes, moves or merges it. The outgoing
messages of turn n+1 therefore begin with the bytes of those of turn n, and the neuron's prefix cache stays valid;
otherwise the neuron would process the whole conversation again at every turn. For the same reason a string and a list
of one text block give the same bytes: clients turn one into the other when they move their `cache_control` marks.

Content that the model would see is translated or rejected. What else has no counterpart is named by `Ignored`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import msgspec

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.anthropic import request_types, signature
from gateway.dialects.anthropic.content import AVAILABLE, compacted, parts_of, records_servers_work
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.anthropic.request_types import (
    MessagesBlock,
    MessagesContent,
    MessagesOutputFormat,
    MessagesRequest,
    MessagesTurn,
)
from gateway.dialects.anthropic.tools import ToolChange, ignored_tools, tool_changes, tool_parameters
from gateway.dialects.chat_request import content_of, encode_messages, estimate_tokens, kind_of, text_part
from gateway.dialects.fields import decode_field, invalid
from gateway.dialects.json_splice import ModelField, locate
from gateway.dialects.loose_json import JsonObject, is_object
from gateway.dialects.translation.alternation import merge_roles
from gateway.dialects.translation.bounds import ITEMS_LIMIT, TOOLS_LIMIT, check_count, check_size
from gateway.dialects.translation.engine_extras import ENGINE_EXTRAS, extras_of, with_extras
from gateway.dialects.translation.ignored import Ignored, ignored_fields

__all__ = ["MessagesAsChat", "translate"]


class MessagesAsChat:
    """A valid Messages request, ready to be written as a chat completions request.

    Attributes:
        input_tokens: An estimate (see `token_estimate`), for `message_start` and `/v1/messages/count_tokens`.
        ignored: The value of `x-cortex-ignored` for a plain backend; empty if nothing was left out.
    """

    __slots__ = (
        "_encoded",
        "_extras",
        "_ignored",
        "_request",
        "_stop_sequences",
        "_stream",
        "_wants_thinking",
        "ignored",
        "input_tokens",
    )

    def __init__(self, request: MessagesRequest, fields: Mapping[str, msgspec.Raw], *, stream: bool) -> None:
        self._request = request
        self._stream = stream
        self._extras = extras_of(fields, _OWN_FIELDS)
        self._stop_sequences = _stop_sequences(request.stop_sequences)
        self._wants_thinking = request.thinking is not None and request.thinking.type != "disabled"
        self._ignored = ignored = Ignored()
        ignored.add(*ignored_fields(fields, _UNDERSTOOD, _DEFAULTS), *ignored_tools(request))
        messages = _messages(request, PLAIN, ignored)
        self.ignored = self.ignored_by(PLAIN)
        encoded, parameters = encode_messages(messages), self._parameters(PLAIN)
        self._encoded = {PLAIN: (encoded, parameters)}
        self.input_tokens = estimate_tokens(messages, encoded, parameters.get("tools", ()))

    def encode(self, model: str, backend: Backend = PLAIN) -> bytes:
        """The outgoing body for a backend of this kind that knows the model as `model`.

        A retry may call it again for another backend; the messages for each kind of backend are kept.

        Raises:
            BadRequest: This kind of backend cannot be sent the request; names the field.
        """
        if backend not in self._encoded:
            messages = encode_messages(_messages(self._request, backend, Ignored()))
            self._encoded[backend] = messages, self._parameters(backend)
        messages, parameters = self._encoded[backend]
        return msgspec.json.encode({"model": model, "messages": msgspec.Raw(messages), **parameters})

    def ignored_by(self, backend: Backend) -> bytes:
        """The value of `x-cortex-ignored` for a backend of this kind: each has its own switch for thinking."""
        return self._ignored.header_value(_ignored_in_fields(self._request, backend))

    def context(self, request_id: str, model: str, backend: Backend = PLAIN) -> MessagesContext:
        """What the answer's translation needs.

        Reasoning is shown if the client asked for thinking. It is also shown if the client says nothing about thinking
        and the backend has no switch for it.
        """
        has_no_wish = self._request.thinking is None and backend.thinking_switch == "none"
        show_thinking = self._wants_thinking or has_no_wish
        return MessagesContext(request_id, model, self.input_tokens, self._stop_sequences, show_thinking)

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
            "response_format": _response_format(request),
        }
        parameters |= tool_parameters(request)
        parameters |= self._thinking_parameters(backend)
        if self._stream:
            parameters |= {"stream": True, "stream_options": {"include_usage": True}}
        return with_extras({name: value for name, value in parameters.items() if value is not None}, self._extras)

    def _thinking_parameters(self, backend: Backend) -> JsonObject:
        """Thinking is off unless the client asks for it, as in Anthropic's API."""
        if backend.thinking_switch == "none":
            return {}
        if backend.thinking_switch == "chat_template_kwargs":
            return {"chat_template_kwargs": {"enable_thinking": self._wants_thinking}}
        return {"reasoning_effort": _effort(self._request) if self._wants_thinking else "none"}


_OWN_FIELDS = frozenset({"model", "stream", *MessagesRequest.__struct_fields__})
_UNDERSTOOD = _OWN_FIELDS | ENGINE_EXTRAS
_DEFAULTS = {"service_tier": frozenset({b'"auto"', b'"standard_only"'}), "n": frozenset({b"1"})}


def _ignored_in_fields(request: MessagesRequest, backend: Backend) -> Iterator[str]:
    """Parts of fields that have no effect on a backend of this kind, though the field may have one."""
    thinking, config, switch = request.thinking, request.output_config, backend.thinking_switch
    effort = None if config is None else config.effort
    if thinking is not None and switch == "none":
        yield "thinking"
    elif thinking is not None:
        if thinking.budget_tokens is not None and (switch == "chat_template_kwargs" or effort is not None):
            yield "thinking.budget_tokens"
        if thinking.display is not None:
            yield "thinking.display"
    wants_thinking = thinking is not None and thinking.type != "disabled"
    if effort is not None and not (wants_thinking and switch == "reasoning_effort"):
        yield "output_config.effort"
    if config is not None and config.task_budget is not None:
        yield "output_config.task_budget"
    if isinstance(request.metadata, dict):
        yield from (f"metadata.{name}" for name in request.metadata if name != "user_id")


def translate(body: bytes, model: ModelField | None = None) -> MessagesAsChat:
    """Read a body of `/v1/messages` or `/v1/messages/count_tokens`. `model` is its model field if already located.

    Raises:
        MalformedJson, MissingModelField: As `json_splice.locate`.
        BadRequest: A field is wrong or cannot be translated; the message and `param` name its path.
    """
    model = locate(body) if model is None else model
    check_size(body)
    request, fields = request_types.reader.read(body)
    if not request.messages:
        raise invalid("messages", "at least one message is required")
    check_count(request.messages, "messages", ITEMS_LIMIT)
    check_count(request.tools, "tools", TOOLS_LIMIT)
    return MessagesAsChat(request, fields, stream=model.stream)


# Messages...


def _messages(request: MessagesRequest, backend: Backend, ignored: Ignored) -> list[JsonObject]:
    messages: list[JsonObject] = []
    if system := _system_text(request.system, "system"):
        messages.append({"role": "system", "content": system})
    for index, turn in enumerate(request.messages):
        as_system = not messages or backend.system_anywhere
        thoughts = backend.reasoning_content
        messages.extend(_turn(turn, f"messages.{index}", ignored, as_system=as_system, thoughts=thoughts))
    if backend.alternating_roles is False:
        return messages
    return merge_roles(messages, strictly=backend.alternating_roles is True)


def _turn(turn: MessagesTurn, path: str, ignored: Ignored, *, as_system: bool, thoughts: bool) -> Iterable[JsonObject]:
    """The outgoing messages of one turn: more than one if it has tool results."""
    content_path = f"{path}.content"
    match turn.role:
        case "user":
            return _user_turn(turn.content, content_path, ignored)
        case "assistant":
            return [_assistant_turn(turn.content, content_path, ignored, thoughts=thoughts)]
        case "system" | "developer":
            return [_system_turn(turn.content, content_path, as_system=as_system)]
    raise invalid(f"{path}.role", f"must be `user`, `assistant` or `system`, not `{turn.role}`")


def _system_text(content: MessagesContent, path: str) -> str:
    texts = []
    for block_path, block in request_types.blocks_of(content, path):
        if isinstance(block.text, str):
            if not block.text.startswith(_BILLING_HEADER):
                texts.append(block.text)
        elif block.type not in {"text", "thinking", "redacted_thinking", "tool_addition", "tool_removal"}:
            raise invalid(f"{block_path}.type", f"a system text cannot have a `{block.type}` block")
    return "\n".join(texts)


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
    return AVAILABLE.format(change.name) if change.added else f"[tool {change.name} is no longer available]"


def _user_turn(content: MessagesContent, path: str, ignored: Ignored) -> Iterator[JsonObject]:
    """Tool results first: chat completions wants them right after the call, Messages allows them anywhere in a turn."""
    parts: list[JsonObject] = []
    has_result = False
    for block_path, block in request_types.blocks_of(content, path):
        if block.type == "tool_result":
            tool_message, images = _tool_message(block, block_path)
            yield tool_message
            parts += images
            has_result = True
        elif records_servers_work(block):
            ignored.add(f"messages.{block.type}")
        else:
            parts += parts_of(block, block_path)
    if parts or not has_result:
        yield {"role": "user", "content": content_of(parts)}


def _assistant_turn(content: MessagesContent, path: str, ignored: Ignored, *, thoughts: bool) -> JsonObject:
    """Texts are joined without a separator: the API splits one text into blocks where citations begin and end."""
    text, thought, calls = "", "", []
    for block_path, block in request_types.blocks_of(content, path):
        if block.type == "tool_use":
            calls.append(_tool_call(block, block_path))
        elif block.type == "thinking":
            if isinstance(block.thinking, str) and signature.is_genuine(block.thinking, block.signature):
                thought += block.thinking
        elif records_servers_work(block):
            ignored.add(f"messages.{block.type}")
        else:
            text += _assistant_text(block, block_path)
    message: JsonObject = {"role": "assistant", "content": text if text or not calls else None}
    if thought and thoughts:
        message["reasoning_content"] = thought
    if calls:
        message["tool_calls"] = calls
    return message


def _assistant_text(block: MessagesBlock, path: str) -> str:
    if isinstance(block.text, str):
        return block.text
    if block.type == "compaction":
        return compacted(block, path)
    if block.type in {"text", "redacted_thinking"}:
        return ""
    raise invalid(f"{path}.type", f"an assistant turn with a `{block.type}` block cannot be passed to the model")


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
        for part in parts_of(inner, inner_path):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images += [text_part(f"[{kind_of(part)} from the result of tool call {block.tool_use_id}]"), part]
    text = "\n".join(texts) or (f"[{kind_of(images[1])}, see below]" if images else "")
    if block.is_error is True:
        text = f"Error: {text}" if text else "Error"
    return {"role": "tool", "tool_call_id": block.tool_use_id, "content": text}, images


# Parameters...


def _stop_sequences(value: str | list[str] | None) -> tuple[str, ...]:
    return tuple(filter(None, [value] if isinstance(value, str) else value or ()))


def _user_id(metadata: object) -> str | None:
    """`metadata.user_id`, unread. Some clients put JSON into that string, and some send the JSON itself."""
    user_id = metadata.get("user_id") if isinstance(metadata, dict) else None
    if user_id is None or isinstance(user_id, str):
        return user_id
    return msgspec.json.encode(user_id).decode()


def _response_format(request: MessagesRequest) -> JsonObject | None:
    """From `output_config.format`, or from `output_format`, as its beta version was called."""
    config = request.output_config
    if config is not None and config.format is not None:
        return _json_schema(config.format, "output_config.format")
    return None if request.output_format is None else _json_schema(request.output_format, "output_format")


def _json_schema(output_format: MessagesOutputFormat, path: str) -> JsonObject:
    if output_format.type != "json_schema":
        raise invalid(f"{path}.type", f"must be `json_schema`, not `{output_format.type}`")
    if not is_object(output_format.schema):
        raise invalid(f"{path}.schema", "must be an object")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": output_format.schema}}


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
