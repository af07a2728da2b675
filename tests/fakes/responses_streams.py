"""Streams of chat completions for tests, and what a client of Responses gets for them."""

from fakes.chat_completions import USAGE, chunk
from responses_grammar import read_stream

from gateway.dialects.responses.response_object import ResponsesContext
from gateway.dialects.responses.stream import ResponsesStream

REQUEST_FIELDS = {"instructions": "be nice", "tools": [], "metadata": {}}
CONTEXT = ResponsesContext("req-1", "lab/m", input_tokens=12, request_fields=REQUEST_FIELDS)


def translated(*datas, context=CONTEXT, finish=True):
    translator = ResponsesStream(context)
    stream = b"".join(translator.feed(data) for data in datas)
    return stream + (translator.finish() if finish else b"")


def translated_answer(*deltas, finish_reason="stop", **more):
    """What a client reads of these deltas and a good end."""
    return read_stream(translated(*map(chunk, deltas), chunk({}, finish_reason, usage=USAGE), b"[DONE]", **more))
