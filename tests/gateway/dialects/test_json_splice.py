"""Reading and replacing single values of a body: everything else keeps its bytes, and ambiguous bodies are rejected."""

import contextlib
import json
import time
import tracemalloc

import pytest
from fakes.patience import best_of, measured
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.json_splice import edit, find, locate, splice
from gateway.errors import BadRequest, MalformedJson, MissingModelField

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
    """For any JSON object: parsed, only `model` differs; in bytes, only the located span differs."""
    value = {**{k: v for k, v in before.items() if k != "model"}, "model": name}
    value.update({k: v for k, v in after.items() if k not in value})
    body = dump(value)
    try:
        field = locate(body)
    except MalformedJson:
        assert "\\ud" not in body.decode("utf-8", "replace").lower()  # only text that cannot be encoded may be rejected
        body.decode()
        raise
    out = splice(body, field, new)

    assert field.name == name
    assert json.loads(out) == {**value, "model": new}
    assert out[: field.start] == body[: field.start]
    assert out[len(out) - (len(body) - field.end) :] == body[field.end :]


def test_splice_returns_the_same_object_when_nothing_changes():
    """A body that already names the neuron's model is not copied."""
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
    """With any spelling of the key, and any other members."""
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
def test_locate_rejects_two_top_level_models(body):
    """The gateway could route by one, and the neuron use the other."""
    with pytest.raises(MissingModelField, match="more than one top-level `model`"):
        locate(body)


@pytest.mark.parametrize("body", [rb'{"model":"\ud800"}', rb'{"model":"a\uDC00"}', b'{"model":"%b"}' % (b"x" * 4095)])
def test_locate_rejects_an_impossible_model_name(body):
    """Half a surrogate pair cannot be logged, and a name has a maximum length."""
    with pytest.raises(MissingModelField, match="model"):
        locate(body)


@pytest.mark.parametrize("body", [rb'{"model":"\ud83d\ude00","x":"\ud800"}', rb'{"x":"\\ud800","model":"\\ud800"}'])
def test_locate_reads_the_name_exactly_beside_lone_surrogates(body):
    """A surrogate pair is one character, and an escaped backslash begins no escape."""
    assert locate(body).name == json.loads(body)["model"]


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'"model"', b"7", b"null", b'{"model":7}', b'{"model":null}', b'{"model":["a"]}', b'{"Model":"a"}'],
)
def test_locate_rejects_json_without_a_string_model(body):
    """The message names `model`, so that the reader knows what to add."""
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
def test_locate_rejects_a_body_that_is_not_json(body):
    """The message names `model`, for any bytes."""
    with pytest.raises(MalformedJson, match="model"):
        locate(body)


# Bodies made to block the gateway: each has a structure on which a parser could be slow.
HOSTILE = {
    "zeros": (b"", b"0,"),
    "brackets": (b'"y":{"model":1},', b"[],"),
    "strings": (b'"y":{"model":1},', b'"",'),
    "keys": (b"", b'{"model":1},'),
    "half pairs": (b"", rb'"\ud800",'),
    "not quite keys": (b'"y":{"model":1},', rb'"\"model\":",'),
}


def hostile_body(kind, size_bytes, *, end=b"0]}"):
    start, piece = HOSTILE[kind]
    return b'{"model":"a",%b"x":[%b' % (start, piece * (size_bytes // len(piece))) + end


@measured
@pytest.mark.parametrize("end", [b"0]}", b"0]"])
@pytest.mark.parametrize("kind", HOSTILE)
async def test_locate_takes_milliseconds_per_megabyte_of_any_body(kind, end):
    """16 MiB take less than half a second of CPU, accepted or rejected. An earlier version took 1 to 3 s."""
    body = hostile_body(kind, 16 * 1024**2, end=end)

    async def take():
        began = time.process_time()
        with contextlib.suppress(MalformedJson):
            locate(body)
        return time.process_time() - began

    await best_of(take, 0.5)


@pytest.mark.parametrize("piece", [*HOSTILE, "escapes"])
def test_locate_takes_little_memory(piece):
    """At most two copies of the body. An earlier version took 64 bytes per escape."""
    escapes = rb'{"y":{"model":1},"model":"a","x":"%b"}' % (rb"\n" * 500_000)
    body = escapes if piece == "escapes" else hostile_body(piece, 1024**2)
    tracemalloc.start()
    try:
        assert locate(body).name == "a"
        assert tracemalloc.get_traced_memory()[1] < 3 * len(body)
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=60) | st.text(alphabet='{}[]",:model\\u0065 1', max_size=40).map(str.encode))
def test_locate_raises_nothing_but_its_own_errors(body):
    """Any bytes are rejected or accepted; an accepted name is the one that Python's own parser reads."""
    try:
        field = locate(body)
    except (MalformedJson, MissingModelField):
        return
    assert json.loads(body)["model"] == field.name


# Members that an alias sets...

KEYS = st.sampled_from(["temperature", "top_p", "stop", "é", "tools"]) | st.text(
    alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"], exclude_characters='"\\'),
    min_size=1,
    max_size=3,
)
texts = st.dictionaries(KEYS, values.map(lambda value: json.dumps(value, ensure_ascii=False)), max_size=4).filter(
    lambda members: is_unicode(json.dumps(members))
)


def is_unicode(text):
    """Whether it has no lone surrogates. A TOML file cannot contain any."""
    try:
        json.loads(text).__repr__().encode()
        json.dumps(json.loads(text), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


@given(given_members=st.dictionaries(KEYS, values, max_size=6), defaults=texts, forced=texts, dump=dumps)
def test_edit_sets_the_members_and_nothing_else(given_members, defaults, forced, dump):
    """Parsed: defaults only for missing keys, forced values always. In bytes: everything else is unchanged."""
    value = {"model": "m", **given_members}
    body = dump(value)
    try:
        body.decode()
    except UnicodeDecodeError:
        return  # `locate` rejects it first
    out = edit(body, defaults, forced)

    expected = {key: json.loads(text) for key, text in defaults.items()} | value
    expected |= {key: json.loads(text) for key, text in forced.items()}
    assert json.loads(out) == expected
    inserted = b"".join(
        json.dumps(key, ensure_ascii=False).encode() + b":" + text.encode() + b","
        for key, text in (defaults | forced).items()
        if key not in value
    )
    assert out.startswith(b"{" + inserted)
    after = [span for _, span in sorted(find(body, tuple(value)).items(), key=lambda item: item[1])]
    rest, at = out[1 + len(inserted) :], 1
    for key, span in zip(value, after, strict=True):
        assert rest.startswith(body[at : span.start])
        rest, at = rest[span.start - at :], span.end
        text = forced[key].encode() if key in forced else body[span.start : span.end]
        assert rest.startswith(text)
        rest = rest[len(text) :]
    assert rest == body[at:]


def test_edit_returns_the_same_object_when_nothing_changes():
    """The client has set every default itself."""
    body = b'{"model":"m", "temperature" : 1 }'

    assert edit(body, {"temperature": "0.2"}, {}) is body


@pytest.mark.parametrize(
    ("body", "out"),
    [
        (b'{"model":"m"}', b'{"d":2,"f":1,"model":"m"}'),
        (b' {\n"model" : "m" }\n', b' {"d":2,"f":1,\n"model" : "m" }\n'),
        (b'{"model":"m","f":  [1, {"f": 2}] ,"d":null}', b'{"model":"m","f":  1 ,"d":null}'),
        (b'{"model":"m","\\u0066":"x","d":0}', b'{"model":"m","\\u0066":1,"d":0}'),
        (b'{"model":"m","x":"\\"f\\":","y":[{"f":0}]}', b'{"d":2,"f":1,"model":"m","x":"\\"f\\":","y":[{"f":0}]}'),
        (b'{"model":"m","\\ud800":0,"f":1e400}', b'{"d":2,"model":"m","\\ud800":0,"f":1}'),
    ],
)  # fmt: skip
def test_edit_finds_only_top_level_members(body, out):
    """Not nested keys or text that looks like a key; escaped keys count."""
    assert edit(body, {"d": "2"}, {"f": "1"}) == out


@pytest.mark.parametrize("body", [b'{"f":0,"model":"m","f":1}', b'{"f":0,"model":"m","\\u0066":"x"}'])
def test_repeated_forced_member_is_rejected(body):
    """Only one of the two would be replaced, and the neuron may use the other."""
    with pytest.raises(BadRequest, match="more than one top-level `f`"):
        edit(body, {}, {"f": "1"})


@measured
@pytest.mark.parametrize("kind", HOSTILE)
async def test_edit_takes_milliseconds_per_megabyte_of_any_body(kind):
    """Like `locate`: other requests wait meanwhile."""
    body = hostile_body(kind, 16 * 1024**2, end=b'0],"f":0}')

    async def take():
        began = time.process_time()
        edit(body, {"d": "2"}, {"f": "1"})
        return time.process_time() - began

    await best_of(take, 0.5)


@pytest.mark.parametrize("body", [b"", b"[]", b"5", b"{", b'{"a":1', b"[" * 100_000])
def test_find_raises_value_error_if_the_body_is_no_object(body):
    """No other exception."""
    with pytest.raises(ValueError):
        find(body, ("a",))
