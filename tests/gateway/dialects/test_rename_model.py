"""The alias's name in answers: that value changes and no other byte, wherever the stream is split."""

import json

import pytest
from fakes.framed import TranslatedStream
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.include_usage import UsageStripper
from gateway.dialects.rename_model import ModelRenamer, renamed
from gateway.errors import ServiceUnavailable
from gateway.http import sse

scalars = st.none() | st.booleans() | st.integers() | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.just("model"), inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(
    st.sampled_from(["model", "id", "choices", "response", "message", "data"]), values, max_size=6
)
dumps = st.sampled_from([json.dumps, lambda value: json.dumps(value, separators=(",", ":"), ensure_ascii=False)])
NAME = "helexa/x"


def renamer(then=None):
    return ModelRenamer(NAME, then, lambda error: sse.write(error.message.encode()))


@given(value=objects, dump=dumps)
def test_model_at_the_top_is_renamed_and_nothing_else(value, dump):
    """Not in keys or texts, at any depth."""
    value["model"] = "Qwen/Qwen3-8B"
    body = dump(value).encode("utf-8", "surrogatepass")

    assert json.loads(renamed(body, b'"helexa/x"')) | {"response": 0, "message": 0} == value | {
        "model": NAME, "response": 0, "message": 0,
    }  # fmt: skip
    assert renamed(body, b'"Qwen/Qwen3-8B"') == body


@pytest.mark.parametrize(
    "body",
    [
        b'{"id":"a","model":"m","choices":[]}',
        b'{"id":"{[","model" : "m" ,"x":1}',
        b'{"a":"model","model":"m","b":{"model":"inner"}}',
        b' {"a":"\\"model\\":\\"x\\"","model":"m"}',
        b'{"type":"response.created","response":{"model":"m"}}',
        b'{"type":"message_start","message":{"id":"i","model":"m","content":[]}}',
        b'{"data":[{"model":"inner"},{"embedding":[1,2]}],"model":"m"}',
        b'{"data":[' + b'{"model":"inner"},' * 20 + b'1],"model":"m"}',
    ],
)
def test_model_is_renamed_where_the_dialects_have_it(body):
    """OpenAI at the top, the others in the object that an event is about."""
    assert renamed(body, b'"helexa/x"') == body.replace(b'"m"', b'"helexa/x"')


@pytest.mark.parametrize(
    "body",
    [
        b'{"choices":[{"delta":{"content":"\\"model\\": \\"m\\""}}]}',
        b'{"choices":[{"delta":{"model":"inner"}}]}',
        b'{"model":5}',
        b'{"model":null,"x":"model"}',
        b"[DONE]",
        b'"model":"m"',
        b'{"a":{"model":"m"',
        b'{"a":{"model":"m","b":"\n"}}',
    ],
)
def test_body_without_a_model_is_unchanged(body):
    """Also if it is not JSON."""
    assert renamed(body, b'"helexa/x"') == body


def test_model_after_a_long_member_is_renamed():
    """Embeddings have their model at the end."""
    body = json.dumps({"data": [{"embedding": [0.25] * 200_000}], "model": "m"}).encode()

    assert renamed(body, b'"x"') == body[: -len('"m"}')] + b'"x"}'


STREAM = (
    b": keep-alive\n\n"
    b'data: {"id":"1","model":"m","choices":[{"delta":{"role":"assistant"}}]}\n\n'
    b'data: {"id":"1","model":"m","choices":[{"delta":{"content":"the \\"model\\":\\"m\\" \xc3\xa9"}}]}\r\n\r\n'
    b'event: x\rdata:{"model":"m"}\r\r'
    b"data: [DONE]\n\n"
)


@given(cuts=st.lists(st.integers(0, len(STREAM)), max_size=12).map(sorted))
def test_stream_is_renamed_wherever_it_is_split(cuts):
    """Every event, and no comment, line end or text."""
    stream = TranslatedStream(renamer())
    pieces = [STREAM[start:end] for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    out = b"".join(map(stream.feed, pieces)) + stream.finish()

    assert out == STREAM.replace(b'"model":"m",', b'"model":"helexa/x",').replace(
        b'{"model":"m"}', b'{"model":"helexa/x"}'
    )


def test_last_event_needs_no_blank_line():
    """Some engines omit it."""
    stream = TranslatedStream(renamer())

    assert stream.feed(b'data: {"model":"m"}') == b""
    assert stream.finish() == b'data: {"model":"helexa/x"}'


def test_event_over_the_limit_passes_and_the_next_is_renamed_again():
    """One event cannot fill the memory."""
    stream = TranslatedStream(renamer())
    overlong = b'data: {"model":"m","x":"' + b"y" * sse.EVENT_LIMIT_BYTES

    assert stream.feed(overlong) == overlong
    assert (
        stream.feed(b'","model":"m"}\n\ndata: {"model":"m"}\n\n') == b'","model":"m"}\n\ndata: {"model":"helexa/x"}\n\n'
    )


class Upper:
    """Another translation."""

    error = None
    keepalive_bytes = b"ping"
    passes_text = False
    held_limit_bytes = sse.EVENT_LIMIT_BYTES

    def feed(self, events):
        return b"".join(event.data.upper() for event in events)

    def finish(self):
        return b"END"

    def fail(self, error):
        return b"FAIL " + error.message.encode()

    def whole(self, body):
        return body.upper()


def test_another_translation_gets_renamed_events():
    """So a translated answer names the alias too, and ends with its own dialect's errors."""
    stream = TranslatedStream(renamer(Upper()))

    assert stream.feed(b'data: {"model":"m"}\n\nda') == b'{"MODEL":"HELEXA/X"}'
    assert stream.feed(b"ta: x") + stream.finish() == b"XEND"
    assert stream.translation.whole(b'{"model":"m"}') == b'{"MODEL":"HELEXA/X"}'
    assert (stream.translation.keepalive_bytes, stream.translation.fail(ServiceUnavailable("no"))) == (
        b"ping",
        b"FAIL no",
    )


@given(cuts=st.lists(st.integers(0, len(STREAM) + 80), max_size=12).map(sorted))
def test_usage_chunk_is_dropped_from_a_renamed_stream(cuts):
    """Renaming and usage stripping work on the same events."""
    usage = b'data: {"model":"m","choices":[],"usage":{"prompt_tokens":1}}\n\n'
    whole = STREAM[: STREAM.index(b"data: [DONE]")] + usage + STREAM[STREAM.index(b"data: [DONE]") :]
    stream = TranslatedStream(renamer(UsageStripper()))
    pieces = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    out = b"".join(map(stream.feed, pieces)) + stream.finish()

    assert out == STREAM.replace(b'"model":"m",', b'"model":"helexa/x",').replace(
        b'{"model":"m"}', b'{"model":"helexa/x"}'
    )


def test_errors_without_another_translation_are_in_the_clients_dialect():
    """It is the upstream's dialect as well."""
    one = renamer()

    assert (one.error, one.keepalive_bytes, one.fail(ServiceUnavailable("no"))) == (
        None,
        sse.KEEP_ALIVE,
        b"data: no\n\n",
    )


def test_rest_of_an_event_over_the_limit_is_not_an_event_of_its_own():
    """It passes as it came, whatever it looks like; the next event is renamed again."""
    stream = TranslatedStream(renamer())
    stream.reader = sse.Reader(limit_bytes=100)
    event = b'data: {"model":"real"}\n\n'

    assert stream.feed(b'data: {"text":"' + b"a" * 200) == b'data: {"text":"' + b"a" * 200
    assert stream.feed(event) == event
    assert stream.feed(event) == event.replace(b"real", NAME.encode())
