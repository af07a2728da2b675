"""Answers of neurons in every form, and what a client must find in them."""

import json

from fakes.chat_completions import whole
from fakes.scripted import with_length

from gateway.config.settings import RetrySettings, Settings

SETTINGS = Settings(retries=RetrySettings(attempts=0))
ENGINE = {"kind": "openai"}
CHAT = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": {**CHAT, "max_tokens": 9},
    "/v1/responses": {"model": "helexa/small", "input": "What is the capital of Georgia?"},
}
CALLS = [
    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x":1}'}},
    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": '{"y":2}'}},
]
WHOLE = whole({"content": "Tbilisi", "reasoning_content": "hm", "tool_calls": CALLS}, "tool_calls")


def content(path, answer):
    """Text, reasoning and calls, of a whole answer or of a stream of any dialect."""
    if answer.headers["content-type"] == "application/json":
        return content_of_whole(path, json.loads(answer.body))
    datas = [line[len("data: ") :] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    events = [json.loads(data) for data in datas if data != "[DONE]"]
    if path == "/v1/chat/completions":
        assert datas[-1] == "[DONE]"
        deltas = [choice["delta"] for event in events for choice in event["choices"]]
        calls = [call for delta in deltas for call in delta.get("tool_calls") or ()]
        return (
            "".join(delta.get("content") or "" for delta in deltas),
            "".join(delta.get("reasoning_content") or "" for delta in deltas),
            [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls],
        )
    if path == "/v1/responses":
        assert events[-1]["type"] == "response.completed"
        return content_of_whole(path, events[-1]["response"])
    assert events[-1]["type"] == "message_stop"
    blocks = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    for event in events:
        if event["type"] == "content_block_delta":
            block, delta = blocks[event["index"]], event["delta"]
            for name in ("text", "thinking"):
                block[name] = block.get(name, "") + delta.get(name, "")
            block["input"] = (block.get("input") or "") + delta.get("partial_json", "")
    for block in blocks:
        block["input"] = json.loads(block["input"] or "{}")
    return content_of_whole(path, {"content": blocks})


def content_of_whole(path, answer):
    if path == "/v1/chat/completions":
        message = answer["choices"][0]["message"]
        calls = message.get("tool_calls") or ()
        return (
            message["content"],
            message.get("reasoning_content", ""),
            [(call["id"], call["function"]["name"], call["function"]["arguments"]) for call in calls],
        )
    if path == "/v1/responses":
        items = answer["output"]
        return (
            "".join(part["text"] for item in items if item["type"] == "message" for part in item["content"]),
            "".join(part["text"] for item in items if item["type"] == "reasoning" for part in item["content"]),
            [(item["call_id"], item["name"], item["arguments"]) for item in items if item["type"] == "function_call"],
        )
    blocks = answer["content"]
    return (
        "".join(block["text"] for block in blocks if block["type"] == "text"),
        "".join(block["thinking"] for block in blocks if block["type"] == "thinking"),
        [
            (block["id"], block["name"], json.dumps(block["input"], separators=(",", ":")))
            for block in blocks
            if block["type"] == "tool_use"
        ],
    )


EXPECTED = ("Tbilisi", "hm", [("c1", "f", '{"x":1}'), ("c2", "g", '{"y":2}')])


NONSENSE = {
    "html": with_length(b"<html>", kind="text/html"),
    "html as json": with_length(b"<html>"),
    "empty": with_length(b""),
    "json of another kind": with_length(b'{"status":"ok"}'),
    "array": with_length(b"[1]"),
    "no choices": with_length(b'{"choices":[]}'),
    "cut json": with_length(WHOLE[:-9]),
    "cut json as a stream": with_length(WHOLE[:-9], kind="text/event-stream"),
}
