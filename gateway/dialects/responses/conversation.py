"""A request's instructions and input items as the messages of a chat completion. Pure; parameters are `request`'s.

The items of one answer of the model (thoughts, texts, calls) become one assistant message, because chat templates want
calls and what was said before them together. Everything else is translated on its own, never moved or changed for what
comes after it. So the outgoing messages of turn n+1 begin with those of turn n, byte for byte, and the neuron's prefix
cache holds; as in the sibling, a string and a list of one text part come out alike.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec

from gateway.config.engine_traits import Backend
from gateway.dialects.responses import incoming, tools
from gateway.dialects.responses.incoming import Item, Part, Request
from gateway.dialects.validate import read, refusal

__all__ = ["NO_STORE", "Conversation", "messages"]

Outgoing = dict[str, Any]

NO_STORE = "no store is configured here: send the whole input"


def messages(request: Request, backend: Backend) -> list[Outgoing]:
    """All of them.

    Raises:
        BadRequest: An item cannot be understood or passed on; message and `param` name its path.
    """
    conversation = Conversation(backend)
    if request.instructions:
        conversation.system(request.instructions)
    for path, item in incoming.items(request):
        conversation.add(Item("message", "user", _raw(item)) if isinstance(item, str) else item, path)
    return conversation.finished()


def _raw(text: str) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(text))


class Conversation:
    """Messages in the making. What may still change is only what one answer, or one run of tool outputs, is made of."""

    __slots__ = ("_answer", "_backend", "_messages", "_pictures", "_thought")

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._messages: list[Outgoing] = []
        self._answer: Outgoing | None = None  # the last message, while it may still take what belongs to it
        self._thought = ""  # of an answer that has not said anything yet
        self._pictures: list[Outgoing] = []  # from tool outputs; they wait for the last of those

    def finished(self) -> list[Outgoing]:
        """The messages."""
        self._show_pictures()
        return self._messages

    def add(self, item: Item, path: str) -> None:
        """Take in the next item. One of a type nobody here knows leaves no trace."""
        type_ = item.type or ("message" if item.role is not None else "item_reference" if item.id else None)
        match type_:
            case "message":
                self._message(item, path)
            case "function_call" | "custom_tool_call":
                self._call(item, path)
            case "function_call_output" | "custom_tool_call_output":
                self._output(item, path)
            case "reasoning":
                self._think(item, path)
            case "item_reference":
                raise refusal(path, f"an item cannot be referred to: {NO_STORE}")

    # Messages...

    def _message(self, item: Item, path: str) -> None:
        content_path = f"{path}.content"
        match item.role:
            case "user":
                self._other({"role": "user", "content": _joined(_parts(item.content, content_path))})
            case "assistant":
                self._say(_text(item.content, content_path, ""))
            case "system" | "developer":
                self.system(_text(item.content, content_path, "\n"))
            case _:
                roles = "`user`, `assistant`, `system` or `developer`"
                raise refusal(f"{path}.role", f"must be {roles}, not `{item.role}`")

    def system(self, text: str) -> None:
        """What the developer says. Before the first turn it is one system message: many templates take no second."""
        if not self._messages or self._backend.system_anywhere:
            self._other({"role": "system", "content": text})
        elif self._messages[-1]["role"] == "system":
            self._messages[-1]["content"] += f"\n\n{text}"
        else:
            self._other({"role": "user", "content": f"<system-reminder>\n{text}\n</system-reminder>"})

    def _other(self, message: Outgoing) -> None:
        """A message that is no part of an answer, and ends the one before it."""
        self._show_pictures()
        self._answer, self._thought = None, ""
        self._messages.append(message)

    # The model's answers...

    def _say(self, text: str) -> None:
        """Two texts in a row stay apart; one after a call is part of the same answer, whose calls are not answered."""
        if self._answer is None or "tool_calls" not in self._answer:
            self._answer = None
            self._its_answer()["content"] = text
        else:
            answer = self._its_answer()
            answer["content"] = (answer["content"] or "") + text

    def _call(self, item: Item, path: str) -> None:
        call = _tool_call(item, path)
        self._its_answer().setdefault("tool_calls", []).append(call)

    def _its_answer(self) -> Outgoing:
        """The message that what comes next belongs to, with what was thought before it."""
        if self._answer is None:
            self._show_pictures()
            self._answer = {"role": "assistant", "content": None}
            self._messages.append(self._answer)
        if self._thought:
            self._answer["reasoning_content"] = self._answer.get("reasoning_content", "") + self._thought
            self._thought = ""
        return self._answer

    def _think(self, item: Item, path: str) -> None:
        """Thoughts are kept where the backend takes them. What OpenAI encrypted or summarised is none of ours."""
        if self._backend.reasoning_content:
            self._thought += _text(item.content, f"{path}.content", "")

    # Tool outputs...

    def _output(self, item: Item, path: str) -> None:
        """A `tool` message holds text. Pictures follow in a user message behind the run of outputs, labelled."""
        if not isinstance(item.call_id, str):
            raise refusal(path, f"a {item.type} needs a string `call_id`")
        pictures = []
        texts = []
        for part in _parts(_output_content(item.output), f"{path}.output"):
            if part["type"] == "text":
                texts.append(part["text"])
            else:
                pictures += [_text_part(f"[image from the output of tool call {item.call_id}]"), part]
        text = "\n".join(texts) or ("[image, see below]" if pictures else "")
        self._answer, self._thought = None, ""
        self._messages.append({"role": "tool", "tool_call_id": item.call_id, "content": text})
        self._pictures += pictures

    def _show_pictures(self) -> None:
        if self._pictures:
            self._messages.append({"role": "user", "content": self._pictures})
            self._pictures = []


# Calls...


def _tool_call(item: Item, path: str) -> Outgoing:
    call_id = item.call_id or item.id
    if not isinstance(call_id, str) or not isinstance(item.name, str):
        raise refusal(path, f"a {item.type} needs a string `call_id` and a string `name`")
    namespace = item.namespace if isinstance(item.namespace, str) else None
    if item.type == "custom_tool_call":
        arguments = tools.custom_arguments(item.input if isinstance(item.input, str) else "")
    else:
        arguments = _arguments(item.arguments, f"{path}.arguments")
    function = {"name": tools.outgoing_name(item.name, namespace), "arguments": arguments}
    return {"id": call_id, "type": "function", "function": function}


def _arguments(value: msgspec.Raw, path: str) -> str:
    """The string as it is; nothing is an empty object, and an object is one that a client forgot to encode."""
    text = bytes(value)
    if text.startswith(b'"'):
        return read(incoming.text_decoder, value, path).strip() or "{}"
    return text.decode() if text.startswith(b"{") else "{}"


def _output_content(output: msgspec.Raw) -> msgspec.Raw:
    """Text and parts are content; any other JSON a tool returned is told as it was written."""
    text = bytes(output)
    return output if text[:1] in {b"", b'"', b"["} or text == b"null" else _raw(text.decode())


# Contents...


def _joined(parts: list[Outgoing]) -> str | list[Outgoing]:
    """Texts as one string, which every engine and template takes; a list only where there are pictures."""
    if all(part["type"] == "text" for part in parts):
        return "\n".join(part["text"] for part in parts)
    return parts


def _text(content: msgspec.Raw, path: str, between: str) -> str:
    """What a content says. The API cuts one text of an answer into parts where annotations and refusals begin."""
    found = (part.refusal if part.type == "refusal" else part.text for _, part in incoming.parts(content, path))
    return between.join(text for text in found if isinstance(text, str))


def _text_part(text: str) -> Outgoing:
    return {"type": "text", "text": text}


def _parts(content: msgspec.Raw, path: str) -> list[Outgoing]:
    return [told for place, part in incoming.parts(content, path) if (told := _part(part, place)) is not None]


def _part(part: Part, path: str) -> Outgoing | None:
    """What a part says to a model. A type nobody here knows says its `text`, or nothing."""
    match part.type:
        case "input_image" | "image_url":
            return _image(part, path)
        case "input_file":
            return _text_part(_file(part, path))
    return _text_part(part.text) if isinstance(part.text, str) else None


def _image(part: Part, path: str) -> Outgoing:
    url = part.image_url.get("url") if isinstance(part.image_url, dict) else part.image_url
    if not isinstance(url, str) or not url:
        if part.file_id is not None:
            raise refusal(f"{path}.file_id", "no files are kept here: send the image as a data URL")
        raise refusal(f"{path}.image_url", "must be a URL or a data URL")
    image: Outgoing = {"url": url}
    if part.detail in {"low", "high"}:  # `auto` is the default, and `original` is unknown to chat completions
        image["detail"] = part.detail
    return {"type": "image_url", "image_url": image}


def _file(part: Part, path: str) -> str:
    """Files are passed on where they are text; silence about one that is not would be a lie to the model."""
    if not isinstance(part.file_data, str):
        field = "file_url" if part.file_url is not None else "file_id" if part.file_id is not None else "file_data"
        raise refusal(f"{path}.{field}", "no files are kept or fetched here: send the text as `file_data`")
    header, _, data = part.file_data.rpartition(",")
    media_type = header.removeprefix("data:").partition(";")[0]
    try:
        text = base64.b64decode(data, validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        text = "\0"
    if "\0" in text or text.startswith("%PDF"):
        kind = f" of type `{media_type}`" if media_type else ""
        raise refusal(f"{path}.file_data", f"a file{kind} that is not UTF-8 text, as base64, cannot be passed on")
    return f"{part.filename}\n{text}" if isinstance(part.filename, str) and part.filename else text
