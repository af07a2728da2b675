"""A request's instructions and input items as the messages of a chat completion. `request` translates the parameters.

The items of one answer of the model (reasoning, texts, calls) become one assistant message, because chat templates
expect calls together with the text before them. Every other item is translated on its own; a later item of another
role never changes or moves it. The outgoing messages of turn n+1 therefore begin with the bytes of those of turn n, and
the neuron's prefix cache stays valid. For the same reason a string and a list of one text part give the same bytes.

Content that the model would see is translated or rejected. Records of work on OpenAI's servers are named by `Ignored`.
"""

from __future__ import annotations

import base64

import msgspec

from gateway.config.engine_traits import Backend
from gateway.dialects.chat_request import audio_part, content_of, kind_of, text_part
from gateway.dialects.fields import decode_field, invalid
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.responses import client_run_tools, encrypted_reasoning, request_types, tools
from gateway.dialects.responses.request_types import ResponsesItem, ResponsesPart, ResponsesRequest
from gateway.dialects.translation.alternation import merge_roles
from gateway.dialects.translation.ignored import Ignored

__all__ = ["NO_STORE", "messages"]

NO_STORE = "this gateway stores no responses: send the whole conversation in `input`"


def messages(
    request: ResponsesRequest, backend: Backend, ignored: Ignored, secret_key: bytes = b""
) -> list[JsonObject]:
    """The messages for a backend of this kind.

    Args:
        request: The request.
        backend: The traits of the neuron that gets the messages.
        ignored: Gets the names of the items that are left out.
        secret_key: Authenticates `encrypted_content`.

    Raises:
        BadRequest: An item is wrong or cannot be translated; the message and `param` name its path.
    """
    conversation = _Conversation(backend, ignored, secret_key)
    if request.instructions:
        conversation.add_system(request.instructions)
    for path, item in request_types.items_of(request):
        conversation.add(ResponsesItem("message", "user", _raw(item)) if isinstance(item, str) else item, path)
    sent = conversation.finish()
    if backend.alternating_roles is False:
        return sent
    return merge_roles(sent, strictly=backend.alternating_roles is True)


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


class _Conversation:
    """Builds the messages. Only the current answer, or the current run of tool outputs, can still change."""

    __slots__ = ("_answer", "_backend", "_call_ids", "_ignored", "_images", "_messages", "_secret_key", "_thought")

    def __init__(self, backend: Backend, ignored: Ignored, secret_key: bytes) -> None:
        self._backend = backend
        self._ignored = ignored
        self._secret_key = secret_key
        self._call_ids: dict[str, str] = {}  # by the ids of items whose output may name the item instead of the call
        self._messages: list[JsonObject] = []
        self._answer: JsonObject | None = None  # the last message, as long as further items can belong to it
        self._thought = ""  # reasoning that precedes the next text or call
        self._images: list[JsonObject] = []  # of tool outputs; they follow the last output of the run

    def finish(self) -> list[JsonObject]:
        """The messages."""
        self._add_images()
        return self._messages

    def add(self, item: ResponsesItem, path: str) -> None:
        """Add the next item. Raises BadRequest if it cannot be shown to the model."""
        type_ = item.type or ("message" if item.role is not None else "item_reference" if item.id else None)
        match type_:
            case "message":
                self._add_message(item, path)
            case "function_call" | "custom_tool_call":
                self._add_call(item, path)
            case "function_call_output" | "custom_tool_call_output":
                self._add_output(item, path)
            case str() if type_ in client_run_tools.CALL_TYPES:
                self._add_client_run_call(client_run_tools.CALL_TYPES[type_], item, path)
            case str() if type_ in client_run_tools.OUTPUT_TYPES:
                self._add_client_run_output(item, path)
            case "reasoning":
                self._add_reasoning(item, path)
            case "item_reference":
                raise invalid(path, f"must not be a reference to an item: {NO_STORE}")
            case str() if type_ in _RECORDS_OF_SERVERS:
                self._ignored.add(f"input.{type_}")
            case None:
                raise invalid(f"{path}.type", "is missing")
            case _:
                raise invalid(f"{path}.type", f"an item of type `{type_}` cannot be passed to the model: leave it out")

    def _add_reasoning(self, item: ResponsesItem, path: str) -> None:
        """Only the text itself can be sent back. Another provider's encrypted reasoning and summaries are ignored."""
        if self._backend.reasoning_content:
            text = encrypted_reasoning.decode(item.encrypted_content, self._secret_key)
            self._thought += _text(item.content, f"{path}.content", "") if text is None else text

    # Messages...

    def _add_message(self, item: ResponsesItem, path: str) -> None:
        content_path = f"{path}.content"
        match item.role:
            case "user":
                self._add_other({"role": "user", "content": content_of(_parts(item.content, content_path))})
            case "assistant":
                self._add_text(_text(item.content, content_path, ""))
            case "system" | "developer":
                self.add_system(_text(item.content, content_path, "\n"))
            case _:
                roles = "`user`, `assistant`, `system` or `developer`"
                raise invalid(f"{path}.role", f"must be {roles}, not `{item.role}`")

    def add_system(self, text: str) -> None:
        """Add a developer's text. Before the first turn all of them are one system message.

        Many chat templates take only one system message, and only at the beginning.
        """
        if not self._messages or self._backend.system_anywhere:
            self._add_other({"role": "system", "content": text})
        elif self._messages[-1]["role"] == "system":
            self._messages[-1]["content"] += f"\n\n{text}"
        else:
            self._add_other({"role": "user", "content": f"<system-reminder>\n{text}\n</system-reminder>"})

    def _add_other(self, message: JsonObject) -> None:
        """Add a message that ends the current answer."""
        self._add_images()
        self._answer, self._thought = None, ""
        self._messages.append(message)

    # The model's answers...

    def _add_text(self, text: str) -> None:
        """Two texts in a row are two messages. Text after a call without output joins the call's message."""
        if self._answer is None or "tool_calls" not in self._answer:
            self._answer = None
            self._current_answer()["content"] = text
        else:
            answer = self._current_answer()
            answer["content"] = (answer["content"] or "") + text

    def _add_call(self, item: ResponsesItem, path: str) -> None:
        call = _tool_call(item, path)
        self._current_answer().setdefault("tool_calls", []).append(call)

    def _add_client_run_call(self, tool: str, item: ResponsesItem, path: str) -> None:
        call_id = item.call_id or item.id
        if not isinstance(call_id, str):
            raise invalid(path, f"a {item.type} must have a string `call_id`")
        if isinstance(item.id, str):
            self._call_ids[item.id] = call_id
        field = "operation" if tool == "apply_patch" else "action"
        details = decode_field(request_types.object_decoder, getattr(item, field) or b"null", f"{path}.{field}")
        function = {"name": tool, "arguments": client_run_tools.call_arguments(tool, details)}
        call = {"id": call_id, "type": "function", "function": function}
        self._current_answer().setdefault("tool_calls", []).append(call)

    def _current_answer(self) -> JsonObject:
        """The assistant message that the next text or call belongs to, with the reasoning before it."""
        if self._answer is None:
            self._add_images()
            self._answer = {"role": "assistant", "content": None}
            self._messages.append(self._answer)
        if self._thought:
            self._answer["reasoning_content"] = self._answer.get("reasoning_content", "") + self._thought
            self._thought = ""
        return self._answer

    # Tool outputs...

    def _add_output(self, item: ResponsesItem, path: str) -> None:
        """Add a `tool` message, which can only hold text. Images follow the run of outputs in a user message."""
        if not isinstance(item.call_id, str):
            raise invalid(path, f"a {item.type} must have a string `call_id`")
        images = []
        texts = []
        for part in _parts(_output_content(item.output), f"{path}.output"):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                images += [text_part(f"[{kind_of(part)} from the output of tool call {item.call_id}]"), part]
        text = "\n".join(texts) or (f"[{kind_of(images[1])}, see below]" if images else "")
        self._add_tool_message(item.call_id, text)
        self._images += images

    def _add_client_run_output(self, item: ResponsesItem, path: str) -> None:
        """The output of a `local_shell_call` names its call by `call_id`, or by `id` as in the API reference."""
        call_id = item.call_id or self._call_ids.get(item.id if isinstance(item.id, str) else "", item.id)
        if not isinstance(call_id, str):
            raise invalid(path, f"a {item.type} must have a string `call_id`")
        output = decode_field(request_types.any_decoder, item.output or b"null", f"{path}.output")
        self._add_tool_message(call_id, client_run_tools.output_text(output, item.status))

    def _add_tool_message(self, call_id: str, text: str) -> None:
        self._answer, self._thought = None, ""
        self._messages.append({"role": "tool", "tool_call_id": call_id, "content": text})

    def _add_images(self) -> None:
        if self._images:
            self._messages.append({"role": "user", "content": self._images})
            self._images = []


_RECORDS_OF_SERVERS = frozenset(
    {
        "code_interpreter_call",
        "file_search_call",
        "image_generation_call",
        "mcp_approval_request",
        "mcp_approval_response",
        "mcp_call",
        "mcp_list_tools",
        "tool_search_call",
        "tool_search_output",
        "web_search_call",
    }
)
"""Items that record the work of a tool on OpenAI's servers."""


# Calls...


def _tool_call(item: ResponsesItem, path: str) -> JsonObject:
    call_id = item.call_id or item.id
    if not isinstance(call_id, str) or not isinstance(item.name, str):
        raise invalid(path, f"a {item.type} must have a string `call_id` and a string `name`")
    namespace = item.namespace if isinstance(item.namespace, str) else None
    if item.type == "custom_tool_call":
        arguments = tools.custom_arguments(item.input if isinstance(item.input, str) else "")
    else:
        arguments = _arguments(item.arguments, f"{path}.arguments")
    function = {"name": tools.function_name(item.name, namespace), "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _arguments(value: msgspec.Raw, path: str) -> str:
    """The client's string; "{}" for an empty one. Some clients send the object itself instead of its JSON."""
    text = bytes(value)
    if text.startswith(b'"'):
        return decode_field(request_types.text_decoder, value, path).strip() or "{}"
    return text.decode() if text.startswith(b"{") else "{}"


def _output_content(output: msgspec.Raw) -> msgspec.Raw:
    """A string or a list of parts is content. Any other JSON becomes a text of that JSON as the client wrote it."""
    text = bytes(output)
    return output if text[:1] in {b"", b'"', b"["} or text == b"null" else _raw(text.decode())


# Contents...


def _text(content: msgspec.Raw, path: str, separator: str) -> str:
    """The text of a content. The API splits an answer's text into parts where annotations and refusals begin."""
    return separator.join(_part_text(part, part_path) for part_path, part in request_types.parts_of(content, path))


def _part_text(part: ResponsesPart, path: str) -> str:
    """A part of an unknown type becomes its `text`. Raises BadRequest if it has none: it would be left out."""
    text = part.refusal if part.type == "refusal" else part.text
    if isinstance(text, str):
        return text
    if part.type in _TEXTS:
        return ""
    raise invalid(f"{path}.type", f"a part of type `{part.type}` cannot be passed to the model here: send it as text")


_TEXTS = frozenset({"input_text", "output_text", "text", "refusal", "reasoning_text", "summary_text", None})


def _parts(content: msgspec.Raw, path: str) -> list[JsonObject]:
    parts = (_part(part, part_path) for part_path, part in request_types.parts_of(content, path))
    return [part for part in parts if part is not None]


def _part(part: ResponsesPart, path: str) -> JsonObject | None:
    """The part for chat completions; None for a text part without a text."""
    match part.type:
        case "input_image" | "image_url":
            return _image(part, path)
        case "input_file":
            return text_part(_file(part, path))
        case "input_audio":
            return audio_part(part.input_audio, path)
    text = _part_text(part, path)
    return text_part(text) if text or isinstance(part.text, str) else None


def _image(part: ResponsesPart, path: str) -> JsonObject:
    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
    if not isinstance(url, str) or not url:
        if part.file_id is not None:
            raise invalid(f"{path}.file_id", "this gateway stores no files: send the image as a data URL")
        raise invalid(f"{path}.image_url", "must be a URL or a data URL")
    image: JsonObject = {"url": url}
    if part.detail in {"low", "high"}:  # `auto` is the default; chat completions has no `original`
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _file(part: ResponsesPart, path: str) -> str:
    """A file's text. Other files are rejected: leaving one out would change the question."""
    if not isinstance(part.file_data, str):
        field = "file_url" if part.file_url is not None else "file_id" if part.file_id is not None else "file_data"
        raise invalid(f"{path}.{field}", "this gateway stores and fetches no files: send the text as `file_data`")
    header, _, data = part.file_data.rpartition(",")
    media_type = header.removeprefix("data:").partition(";")[0]
    try:
        text = base64.b64decode(data, validate=True).decode()
    except ValueError:  # also for characters that are not ASCII
        text = "\0"
    if "\0" in text or text.startswith("%PDF"):
        kind = f"a file of type `{media_type}`" if media_type else "this file"
        raise invalid(f"{path}.file_data", f"{kind} cannot be passed to the model: send UTF-8 text, base64-encoded")
    return f"{part.filename}\n{text}" if isinstance(part.filename, str) and part.filename else text
