"""The alias's name in what is answered: that value changes and not another byte, however the bytes come."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects import rename_model as echo
from gateway.dialects.rename_model import LINE_LIMIT_BYTES, Echo, renamed
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


def an_echo(then=None):
    return Echo(NAME, then, lambda error: sse.write(error.message.encode()))


@given(value=objects, dump=dumps)
def test_model_at_the_top_is_renamed_and_nothing_else(value, dump):
    """Wherever else the word stands, however deep, in keys and in texts."""
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
def test_name_stands_where_the_dialects_have_it(body):
    """OpenAI at the top, the others in what an event is about."""
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
def test_what_names_no_model_stays_as_it_is(body):
    """Also what is no JSON: that is for others to say."""
    assert renamed(body, b'"helexa/x"') == body


def test_long_answer_before_the_name_is_not_walked_through():
    """Embeddings name their model last."""
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
def test_stream_is_renamed_however_it_is_cut(cuts):
    """Every event of it, and no comment, line end or text."""
    echo = an_echo()
    pieces = [STREAM[start:end] for start, end in zip([0, *cuts], [*cuts, len(STREAM)], strict=True)]
    out = b"".join(map(echo.feed, pieces)) + echo.finish()

    assert out == STREAM.replace(b'"model":"m",', b'"model":"helexa/x",').replace(
        b'{"model":"m"}', b'{"model":"helexa/x"}'
    )


def test_last_line_need_not_be_ended():
    """Some engines save the blank line."""
    echo = an_echo()

    assert echo.feed(b'data: {"model":"m"}') == b""
    assert echo.finish() == b'data: {"model":"helexa/x"}'


def test_line_beyond_the_limit_passes_and_the_next_is_renamed_again():
    """Nobody may fill the memory with one line."""
    echo = an_echo()
    monster = b'data: {"model":"m","x":"' + b"y" * LINE_LIMIT_BYTES

    assert echo.feed(monster) == monster
    assert echo.feed(b'","model":"m"}\n\ndata: {"model":"m"}\n') == b'","model":"m"}\n\ndata: {"model":"helexa/x"}\n'


class Upper:
    """Another translation."""

    error = None
    keep_alive = b"ping"

    def feed(self, chunk):
        return chunk.upper()

    def finish(self):
        return b"END"

    def fail(self, error):
        return b"FAIL " + error.message.encode()

    def whole(self, body):
        return body.upper()


def test_another_translation_gets_what_was_renamed():
    """So that a translated answer names the alias too, and ends in its own dialect's errors."""
    echo = an_echo(Upper())

    assert echo.feed(b'data: {"model":"m"}\nda') == b'DATA: {"MODEL":"HELEXA/X"}\n'
    assert echo.finish() == b"DAEND"
    assert echo.whole(b'{"model":"m"}') == b'{"MODEL":"HELEXA/X"}'
    assert (echo.keep_alive, echo.fail(ServiceUnavailable("no"))) == (b"ping", b"FAIL no")


def test_without_another_translation_errors_are_the_clients_dialects():
    """It is the neuron's dialect as well."""
    echo = an_echo()

    assert (echo.error, echo.keep_alive, echo.fail(ServiceUnavailable("no"))) == (None, sse.KEEP_ALIVE, b"data: no\n\n")


def test_rest_of_a_line_that_is_too_long_to_be_held_is_no_line_of_its_own(monkeypatch):
    """It passes as it came, whatever it looks like; the next line is renamed again."""
    monkeypatch.setattr(echo, "LINE_LIMIT_BYTES", 100)
    one = an_echo()
    event = b'data: {"model":"real"}\n\n'

    assert one.feed(b'data: {"text":"' + b"a" * 200) == b'data: {"text":"' + b"a" * 200
    assert one.feed(event) == event
    assert one.feed(event) == event.replace(b"real", NAME.encode())
