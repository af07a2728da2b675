"""The grammar of a Messages stream, checked independently of the code that writes it, and a stream read back.

Written from https://docs.anthropic.com/en/api/messages-streaming: it shares nothing with the product but the format.
"""

import json
from dataclasses import dataclass, field

USAGE_KEYS = {"input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens", "output_tokens"}
DELTAS = {
    "text": {"text_delta": "text"},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}
STOP_REASONS = {"end_turn", "max_tokens", "stop_sequence", "tool_use", "refusal"}


@dataclass
class ReadStream:
    """What a client has read so far."""

    blocks: list = field(default_factory=list)
    start: dict | None = None
    stop: dict | None = None
    usage: dict | None = None
    stopped: bool = False
    error: dict | None = None

    def joined(self, kind, key):
        return "".join(block[key] for block in self.blocks if block["type"] == kind)

    @property
    def calls(self):
        return [(block["name"], block["json"]) for block in self.blocks if block["type"] == "tool_use"]


def events(stream):
    """Each event as its type and its data; one line of each, a blank line, and nothing else."""
    assert not stream or stream.endswith(b"\n\n")
    for event in stream.split(b"\n\n")[:-1]:
        first, second = event.split(b"\n")
        assert first.startswith(b"event: ")
        assert second.startswith(b"data: ")
        data = json.loads(second.removeprefix(b"data: "))
        assert data["type"] == first.removeprefix(b"event: ").decode()
        yield data


def read_stream(stream):
    """Read a whole stream or the beginning of one; AssertionError if it breaks the grammar."""
    read_back = ReadStream()
    is_open = False
    for event in events(stream):
        assert read_back.error is None, "an event after an error"
        assert not read_back.stopped, "an event after message_stop"
        kind = event["type"]
        if kind == "ping":
            continue
        if kind == "error":
            assert event.keys() == {"type", "error", "request_id"}
            read_back.error = event["error"]
            continue
        assert (read_back.start is None) == (kind == "message_start"), "message_start comes first, and once"
        assert read_back.stop is None or kind == "message_stop", "nothing but message_stop after message_delta"
        if kind == "message_start":
            read_back.start = event["message"]
            assert event["message"]["usage"].keys() >= USAGE_KEYS
            assert event["message"]["content"] == []
        elif kind == "content_block_start":
            assert not is_open, "two open blocks"
            assert event["index"] == len(read_back.blocks)
            is_open = True
            read_back.blocks.append({**event["content_block"], "json": ""})
        elif kind == "content_block_delta":
            assert is_open
            assert event["index"] == len(read_back.blocks) - 1
            _add(read_back.blocks[-1], event["delta"])
        elif kind == "content_block_stop":
            assert is_open
            assert event["index"] == len(read_back.blocks) - 1
            is_open = False
            _check_closed(read_back.blocks[-1])
        elif kind == "message_delta":
            assert not is_open, "message_delta inside a block"
            assert event["usage"].keys() >= USAGE_KEYS
            assert event["delta"]["stop_reason"] in STOP_REASONS
            read_back.stop, read_back.usage = event["delta"], event["usage"]
        elif kind == "message_stop":
            assert read_back.stop is not None
            read_back.stopped = True
        else:
            raise AssertionError(f"no such event: {kind}")
    return read_back


def _add(block, delta):
    field_ = DELTAS[block["type"]][delta["type"]]
    assert not block.get("signature"), "a signature is the last of its block"
    key = {"partial_json": "json"}.get(field_, field_)
    block[key] += delta[field_]


def _check_closed(block):
    if block["type"] == "thinking":
        assert block["signature"]
    if block["type"] == "text":
        assert block["text"].strip()
