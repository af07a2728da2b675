"""Large bodies are decoded in slices, with the result of one piece, and no step takes long."""

import json
import time
from types import SimpleNamespace

import msgspec
import pytest
from fakes.patience import best_of, measured

from gateway import errors
from gateway.config.engine_traits import Backend
from gateway.dialects import chat_chunks, loose_json
from gateway.dialects.anthropic import request as messages_request
from gateway.dialects.anthropic import response as messages_response
from gateway.dialects.anthropic.message_object import MessagesContext
from gateway.dialects.chat.assemble import stream_datas
from gateway.dialects.responses import request as responses_request
from gateway.dialects.translation import bounds, slices

MIB = 1024**2
TEXT = {"type": "text", "text": "x"}


def turns(count, content):
    return [{"role": "assistant" if at % 2 else "user", "content": content} for at in range(count)]


def messages(**fields):
    return json.dumps({"model": "m", "max_tokens": 9, "messages": turns(1, "hi"), **fields}, separators=(",", ":"))


def responses(**fields):
    return json.dumps({"model": "m", "input": "hi", **fields}, separators=(",", ":"))


TOOL = {"name": "t", "input_schema": {"type": "object", "properties": {f"p{n}": {} for n in range(60)}}}
PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "A" * 40 * MIB}}
RESULT = {"type": "tool_result", "tool_use_id": "a", "content": [TEXT] * 9_000}
ITEM = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "x"}] * 2}
FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}}
LARGE = {
    "many turns": (messages_request, lambda: messages(messages=turns(20_000, [TEXT] * 3))),
    "many blocks": (messages_request, lambda: messages(messages=turns(9, [TEXT] * 9_900))),
    "many blocks in results": (messages_request, lambda: messages(messages=turns(1, [RESULT] * 10))),
    "many blocks of the system": (messages_request, lambda: messages(system=[TEXT] * 9_900)),
    "many tools": (
        messages_request,
        lambda: messages(tools=[{**TOOL, "name": f"t{at}"} for at in range(2_000)]),
    ),
    "too many blocks": (messages_request, lambda: messages(messages=turns(1, [TEXT] * 90_000))),
    "too many turns": (messages_request, lambda: messages(messages=turns(90_000, ""))),
    "too many tools": (messages_request, lambda: messages(tools=[{}] * 190_000)),
    "much text": (messages_request, lambda: messages(messages=turns(2, "line\n" * (MIB // 2)))),
    "a picture": (messages_request, lambda: messages(messages=turns(1, [PICTURE]))),
    "many items": (responses_request, lambda: responses(input=[ITEM] * 20_000)),
    "too many items": (responses_request, lambda: responses(input=[{}] * 190_000)),
    "too many functions": (responses_request, lambda: responses(tools=[FUNCTION] * 40_000)),
    "too many in a namespace": (
        responses_request,
        lambda: responses(tools=[{"type": "namespace", "name": "n", "tools": [FUNCTION] * 40_000}]),
    ),
    "too many allowed": (
        responses_request,
        lambda: responses(
            tools=[FUNCTION], tool_choice={"type": "allowed_tools", "mode": "auto", "tools": [FUNCTION] * 40_000}
        ),
    ),
}


def translated(name):
    api, make = LARGE[name]
    return outcome(api, make().encode())


def outcome(api, body):
    """What a neuron would get, or the error."""
    try:
        as_chat = api.translate(body)
        return [as_chat.encode("m", backend) for backend in (Backend(), Backend(reasoning_content=True))]
    except errors.BadRequest as error:
        return error.message, error.param


# Steps...


class Steps:
    """The calls that keep the interpreter's lock while they decode or encode, by their CPU time."""

    def __init__(self, monkeypatch):
        self.took_s = []
        self.values = []
        decode, encode = loose_json.decode, msgspec.json.encode
        monkeypatch.setattr(loose_json, "decode", lambda *args: self.timed(decode, *args))
        monkeypatch.setattr(msgspec.json, "encode", lambda *args: self.timed(encode, *args))

    def timed(self, call, *args):
        is_skipping = isinstance(args[0], msgspec.json.Decoder) and _skips(args[0])
        if isinstance(args[0], msgspec.json.Decoder) and not is_skipping:
            self.values.append(bytes(args[1]).count(b","))
        began = time.thread_time()
        try:
            return call(*args)
        finally:
            self.took_s.append(time.thread_time() - began)


def _skips(decoder):
    """Whether it decodes no values: only their places."""
    return decoder.type in (list[msgspec.Raw], dict[str, msgspec.Raw]) or "Frame" in str(decoder.type)


@pytest.mark.parametrize("name", [name for name in LARGE if "namespace" not in name])  # there a member is skipped
def test_large_request_is_decoded_in_slices(monkeypatch, name):
    """No step decodes more than some thousand values, accepted or refused."""
    steps = Steps(monkeypatch)
    translated(name)

    assert steps.took_s
    assert max(steps.values, default=0) <= slices.SLICED_BYTES / 3


@measured
@pytest.mark.parametrize("name", LARGE)
async def test_no_step_takes_more_than_50_ms(monkeypatch, name):
    """Of CPU. In one piece it is 100 to 200 ms, and other requests wait meanwhile."""
    api, make = LARGE[name]
    body = make().encode()

    async def take():
        with monkeypatch.context() as patched:
            steps = Steps(patched)
            outcome(api, body)
            return max(steps.took_s)

    await best_of(take, 0.05)


# The result...


SMALL = {
    "turns": (messages_request, messages(messages=turns(9, [TEXT, TEXT]), tools=[TOOL], system=[TEXT, "b"])),
    "strings": (messages_request, messages(messages=turns(9, "hi"), system="be brief", tools=None)),
    "result": (messages_request, messages(messages=turns(1, [RESULT]))),
    "unknown field": (messages_request, messages(novelty=1, messages=turns(3, [TEXT, None]))),
    "no messages": (messages_request, '{"model":"m","max_tokens":9}'),
    "messages of another type": (messages_request, messages(messages={"role": "user"})),
    "a turn of another type": (messages_request, messages(messages=[*turns(2, "hi"), 7])),
    "a block of another type": (messages_request, messages(messages=turns(3, [TEXT, 7]))),
    "a tool of another type": (messages_request, messages(tools=[TOOL, "x"])),
    "half a character": (messages_request, '{"model":"m","messages":[{"role":"user","content":[{"text":"\\ud83d"}]}]}'),
    "items": (responses_request, responses(input=[ITEM, "hi", None], tools=[FUNCTION])),
    "a string": (responses_request, responses(instructions="x")),
    "no input": (responses_request, '{"model":"m"}'),
    "an item of another type": (responses_request, responses(input=[ITEM, 7])),
    "a part of another type": (responses_request, responses(input=[{"role": "user", "content": [7]}])),
    "a namespace": (responses_request, responses(tools=[{"type": "namespace", "name": "n", "tools": [FUNCTION]}])),
}


@pytest.mark.parametrize("name", SMALL)
def test_slices_have_the_result_of_one_piece(monkeypatch, name):
    """The same request to the neuron, or the same error."""
    api, text = SMALL[name]
    whole = outcome(api, text.encode())
    monkeypatch.setattr(slices, "SLICED_BYTES", 0)

    assert outcome(api, text.encode()) == whole


# Bounds...


def test_text_is_bounded_and_base64_is_not():
    """A text of 8 MiB has two million tokens; pictures may fill the body. Escaped slashes and line ends are base64."""
    picture = b'{"data":"' + b"iVBORw0KGgo" * (2 * MIB) + b'"}'

    assert bounds.excess_of(picture) is None
    assert bounds.excess_of(picture.replace(b"KGgoi", b"K\\/goi", 100_000)) is None
    assert bounds.excess_of(b'"' + b"some words " * MIB + b'"') == "more than 8 MiB of text, beside base64 data"
    assert bounds.excess_of(('"' + "\u00fc" * 9 * MIB + '"').encode()) is not None
    assert bounds.excess_of(b'"' + b"\\n" * 5 * MIB + b'"') is not None


TOO_MUCH = SimpleNamespace(
    values=b'{"choices":[{"message":{"content":[' + b"{}," * 250_000 + b'{}]},"finish_reason":"stop"}]}',
    text=b'{"choices":[{"message":{"content":"' + b"\\n" * 5 * MIB + b'"},"finish_reason":"stop"}]}',
)


@pytest.mark.parametrize("body", [TOO_MUCH.values, TOO_MUCH.text], ids=["values", "text"])
def test_answer_that_is_too_large_is_refused_before_it_is_decoded(body):
    """Whole, as a stream, and as an event."""
    for read in (lambda: messages_response.translate(body, MessagesContext("r", "m")), lambda: stream_datas(body)):
        with pytest.raises(errors.UpstreamMalformedResponse, match="has more than"):
            read()
    with pytest.raises(msgspec.DecodeError, match="has more than"):
        chat_chunks.decode_event(body)
