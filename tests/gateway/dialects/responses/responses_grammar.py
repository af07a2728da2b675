"""The grammar of a Responses stream, checked independently of the code that writes it, and a stream read back.

Written from https://platform.openai.com/docs/api-reference/responses-streaming: it shares nothing with the product but
the format.
"""

import json
from dataclasses import dataclass, field

LIFECYCLE = {
    "response.created": "in_progress",
    "response.in_progress": "in_progress",
    "response.completed": "completed",
    "response.incomplete": "incomplete",
    "response.failed": "failed",
}
PARTS = {"reasoning_text": "reasoning", "output_text": "message", "refusal": "message"}
CALLS = {
    "function_call_arguments": ("function_call", "arguments"),
    "custom_tool_call_input": ("custom_tool_call", "input"),
}


@dataclass
class ReadStream:
    """What a client has read so far."""

    items: list = field(default_factory=list)
    response: dict | None = None
    types: list = field(default_factory=list)
    ended: bool = False
    error: dict | None = None

    @property
    def completed(self):
        return self.ended and self.error is None

    def joined(self, kind):
        """All text of a kind of part."""
        key = "refusal" if kind == "refusal" else "text"
        parts = [part for item in self.items for part in item.get("content", ()) if part["type"] == kind]
        return "".join(part[key] for part in parts)

    @property
    def calls(self):
        return [(i["name"], i["arguments"]) for i in self.items if i["type"] == "function_call"]

    def of(self, type_):
        return [item for item in self.items if item["type"] == type_]


def events(stream):
    """Each event as its data; one line of type and data each, a blank line, and nothing else."""
    assert not stream or stream.endswith(b"\n\n")
    for event in stream.split(b"\n\n")[:-1]:
        first, second = event.split(b"\n")
        assert first.startswith(b"event: ")
        assert second.startswith(b"data: ")
        data = json.loads(second.removeprefix(b"data: "))
        assert data["type"] == first.removeprefix(b"event: ").decode()
        yield data


class StreamChecker:
    """Feed it events; AssertionError if it breaks the grammar."""

    def __init__(self):
        self.read_back = ReadStream()
        self.item = None  # the open one, as its events have it so far
        self.part = None  # the open part of it
        self.call_text = None  # the open call's text so far

    def check(self, event):
        read_back, kind = self.read_back, event["type"]
        assert not read_back.ended, "an event after the end"
        assert event["sequence_number"] == len(read_back.types), "a gap"
        read_back.types.append(kind)
        if read_back.error is not None:
            assert kind == "response.failed", "an event between an error and the end"
        if kind == "error":
            self._error(event)
        elif kind in LIFECYCLE:
            self._lifecycle(kind, event["response"])
        else:
            assert read_back.types[:2] == ["response.created", "response.in_progress"]
            self._inside(kind, event)

    def _error(self, event):
        assert event["error"].items() >= {key: event[key] for key in ("code", "message", "param")}.items()
        assert event["error"]["type"]
        self.read_back.error = event["error"]
        self.read_back.ended = self.read_back.response is None

    def _lifecycle(self, kind, response):
        assert response["status"] == LIFECYCLE[kind]
        if kind in {"response.created", "response.in_progress"}:
            assert len(self.read_back.types) == 1 + (kind == "response.in_progress")
            assert response["output"] == []
            assert response["usage"] is None
        else:
            assert self.item is None or kind == "response.failed", "an item was left open"
            assert response["output"] == self.read_back.items
            assert response["id"] == self.read_back.response["id"]
            assert (response["error"] is None) == (self.read_back.error is None) == (kind != "response.failed")
            assert (response["incomplete_details"] is None) == (kind != "response.incomplete")
            assert (response["usage"] is None) == (kind == "response.failed")
            self.read_back.ended = True
        self.read_back.response = response

    def _inside(self, kind, event):
        assert event["output_index"] == len(self.read_back.items)
        if kind == "response.output_item.added":
            assert self.item is None, "two open items"
            assert event["item"]["status"] == "in_progress"
            assert not event["item"].get("content")
            assert not event["item"].get("arguments")
            assert not event["item"].get("input")
            self.item = event["item"]
            assert self.item["id"] not in {item["id"] for item in self.read_back.items}
        elif kind == "response.output_item.done":
            self._item_done(event["item"])
        else:
            assert event["item_id"] == self.item["id"]
            _, name, what = kind.split(".")
            if name == "content_part":
                self._part(what, event)
            elif name in PARTS:
                self._text(name, what, event)
            else:
                self._call(name, what, event)

    def _item_done(self, item):
        assert self.part is None
        assert item["status"] in {"completed", "incomplete"}
        events_item = {key: value for key, value in item.items() if key != "encrypted_content"}
        assert {**events_item, "status": "in_progress"} == self.item, "an item that differs from its events"
        assert item.get("content") != [], "an item without content"
        self.read_back.items.append(item)
        self.item = self.call_text = None

    def _part(self, what, event):
        assert event["content_index"] == len(self.item["content"])
        if what == "added":
            assert self.part is None, "two open parts"
            assert PARTS[event["part"]["type"]] == self.item["type"]
            assert not event["part"].get("text", event["part"].get("refusal"))
            self.part = {**event["part"], "done": False}
        else:
            assert self.part.pop("done"), "no done event for the text"
            assert event["part"] == self.part
            self.item["content"].append(self.part)
            self.part = None

    def _text(self, name, what, event):
        assert self.part["type"] == name
        assert not self.part["done"]
        assert event["content_index"] == len(self.item["content"])
        assert (event.get("logprobs") == []) == (name == "output_text")
        key = "refusal" if name == "refusal" else "text"
        if what == "delta":
            assert event["delta"]
            self.part[key] += event["delta"]
        else:
            assert event[key] == self.part[key]
            self.part["done"] = True

    def _call(self, name, what, event):
        type_, key = CALLS[name]
        assert self.item["type"] == type_
        if what == "delta":
            assert event["delta"]
            self.item[key] += event["delta"]
        else:
            assert self.call_text is None, "done twice"
            assert event[key] == self.item[key]
            assert event["name"] == self.item["name"]
            self.call_text = event[key]


def read_stream(stream):
    """Read a whole stream or the beginning of one."""
    checker = StreamChecker()
    for event in events(stream):
        checker.check(event)
    return checker.read_back
