"""Reading and replacing the one value: nothing else of a body may change, and nothing ambiguous may pass."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import MalformedJson, MissingModelField
from gateway.rewrite import locate, splice

scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("model"), inner, max_size=4)
    ),
    max_leaves=12,
)
objects = st.dictionaries(st.text(max_size=8), values, max_size=6)
dumps = st.sampled_from(
    [
        lambda value: json.dumps(value).encode(),
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        lambda value: json.dumps(value, indent=2).encode(),
        lambda value: json.dumps(value, separators=(",", ":")).encode(),
    ]
)


@given(before=objects, after=objects, name=st.text(), new=st.text(alphabet=st.characters(codec="utf-8")), dump=dumps)
def test_splice_changes_the_model_and_nothing_else(before, after, name, new, dump):
    """For any JSON object: parsed, only `model` differs; in bytes, only the located span does."""
    value = {**{k: v for k, v in before.items() if k != "model"}, "model": name}
    value.update({k: v for k, v in after.items() if k not in value})
    body = dump(value)
    try:
        field = locate(body)
    except MalformedJson:
        assert "\\ud" not in body.decode("utf-8", "replace").lower()  # only unencodable text may be refused
        body.decode()
        raise
    out = splice(body, field, new)

    assert field.name == name
    assert json.loads(out) == {**value, "model": new}
    assert out[: field.start] == body[: field.start]
    assert out[len(out) - (len(body) - field.end) :] == body[field.end :]


def test_splice_returns_the_same_object_when_nothing_changes():
    """A concrete id needs no copy: the body goes out as it came."""
    body = b'{ "model" : "a" }'

    assert splice(body, locate(body), "a") is body


@pytest.mark.parametrize(
    ("body", "name", "stream"),
    [
        (rb'{"mod\u0065l":"a"}', "a", False),
        (rb'{"\u006D\u006fdel" : "a","stream":true}', "a", True),
        (b'{"tools":[{"model":"inner"}],"model":"outer"}', "outer", False),
        (b'{"model":"outer","x":{"model":1}}', "outer", False),
        (rb'{"x":"\"model\":\"fake\"","model":"real"}', "real", False),
        (rb'{"\"model":"fake","model":"real"}', "real", False),
        (rb'{"x":"\\","model":"real","y":{"model":"no"}}', "real", False),
        (b'{"x":["model","a"],"model":"real"}', "real", False),
        (b'\n\t{"stream": true,\r\n "model"\n:\t"a"}\n', "a", True),
        (b'{"model":"a","stream":1}', "a", False),
        (b'{"model":"a","stream":"true"}', "a", False),
        (rb'{"model":"a","x":"\ud800"}', "a", False),
        (b'{"model":"a","x":1e400}', "a", False),
        (b'{"model":"a","stream":1e400}', "a", False),
        (b'{"model":"a","x":' + b"9" * 5000 + b"}", "a", False),
        (b'{"model":"a","stream":' + b"9" * 5000 + b"}", "a", False),
        (rb'{"model":"Qwen\/Qwen3"}', "Qwen/Qwen3", False),
        ('{"model":"é","x":"日本"}'.encode(), "é", False),
    ],
)
def test_locate_finds_the_top_level_model(body, name, stream):
    """However it is spelled and whatever stands beside it."""
    field = locate(body)

    assert (field.name, field.stream) == (name, stream)
    assert json.loads(body[field.start : field.end]) == name


@pytest.mark.parametrize(
    "body",
    [
        b'{"model":"a","model":"b"}',
        b'{"model":"a","model":"a"}',
        rb'{"model":"a","mod\u0065l":"b"}',
        b'{"model":"a","x":{"model":1},"model":"b"}',
    ],
)
def test_locate_refuses_two_top_level_models(body):
    """Two parsers could disagree about which one counts."""
    with pytest.raises(MissingModelField, match="more than one top-level `model`"):
        locate(body)


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'"model"', b"7", b"null", b'{"model":7}', b'{"model":null}', b'{"model":["a"]}', b'{"Model":"a"}'],
)
def test_locate_refuses_json_without_a_string_model(body):
    """The message says `model`, so that the person who reads it knows what to add."""
    with pytest.raises(MissingModelField, match="model"):
        locate(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1",
        b'{"model":"a"',
        b'{"model":"a",}',
        b'{"model":"a"} x',
        b"{'model':'a'}",
        b'{"model":"a","x":NaN}',
        b'{"model":"a","x":-Infinity}',
        b'{"model":"a","x":"\xff"}',
        b'{"model":"a","x":"\xed\xa0\x80"}',
        b'\xef\xbb\xbf{"model":"a"}',
        b'{"model":"a","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model":"a","x":"\x00"}',
        '{"model":"a"}'.encode("utf-16"),
        b"\x1f\x8b\x08\x00\x00",
    ],
)
def test_locate_refuses_what_is_not_json(body):
    """With a message for a person, whatever the bytes."""
    with pytest.raises(MalformedJson, match="model"):
        locate(body)


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:model\\u0065 1', max_size=40).map(str.encode))
def test_locate_raises_nothing_but_its_own_errors(body):
    """Garbage is refused, never a crash; and what is accepted is what Python's own parser sees."""
    try:
        field = locate(body)
    except (MalformedJson, MissingModelField):
        return
    assert json.loads(body)["model"] == field.name
