"""The outline of a body: parsers read in it what they would read in the body, and less of it."""

import base64
import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.json_splice import edit, find, locate
from gateway.dialects.large_bodies import outline as outline_module
from gateway.dialects.large_bodies.outline import KEPT_BYTES, MOST_KEPT_BYTES, Outline, outline_of
from gateway.dialects.large_bodies.spliced_body import SplicedBody, in_one_piece
from gateway.errors import GatewayError, MalformedJson

PICTURE = base64.b64encode(os.urandom(150_000)).decode()


@pytest.fixture
def short_runs(monkeypatch):
    """Cut runs of few bytes, so that random documents have some; the rules are the same."""
    monkeypatch.setattr(outline_module, "RUN_BYTES", 8)
    monkeypatch.setattr(outline_module, "KEPT_BYTES", 4)
    monkeypatch.setattr(outline_module, "STEP_BYTES", 16)


def outcome(body, outline=None):
    """What `locate` finds in the body, or the type of its error."""
    try:
        return locate(body, outline)[:4]
    except GatewayError as error:
        return type(error)


pieces = st.sampled_from(
    [
        '"model":"m"', '"model":7', '"model":', '"m"', '"', "{", "}", "[", "]", ",", ":", " ", "\\", '\\"', "\\u0",
        "\n", "\x00", "1,2,3,4,5,6,7,8,9,", "1234567890123", "[[[[[[[[[", "a" * 9, "b" * 20, "+/" * 30, "e" * 9 + "é",
        "éééééééé", '"x":"' + "A" * 40 + '"', '"mode' + "x" * 40 + 'l":"m"', '"stream":true',
    ]
)  # fmt: skip
documents = st.lists(pieces, max_size=14).map("".join) | st.lists(pieces, max_size=9).map(
    lambda members: '{"model":"m",' + ",".join(members) + "}"
)


@pytest.mark.usefixtures("short_runs")
@given(documents)
def test_model_is_found_as_without_an_outline(document):
    """Any text, JSON or not: the outline changes neither what is found nor what is rejected."""
    body = document.encode()

    assert outcome(body, outline_of(body)) == outcome(body)


@pytest.mark.usefixtures("short_runs")
@given(
    st.dictionaries(
        st.text("ab", max_size=3) | st.text("ab", min_size=12, max_size=60),
        st.text("ab\\\n é", max_size=5) | st.text("ab", min_size=12, max_size=99) | st.integers(0, 999),
        max_size=8,
    ),
    st.booleans(),
)
def test_members_are_where_the_outline_says(members, dense):
    """Each offset of the outline's text is that of the same member of the body."""
    body = json.dumps(members, separators=(",", ":") if dense else None).encode()
    outline = outline_of(body)
    keys = tuple(key for key in members if len(key) < 4)

    in_text = find(outline.text, keys)
    places = {key: (outline.offset(span.start), outline.offset(span.end)) for key, span in in_text.items()}
    assert places == find(body, keys)
    assert len(body) == len(outline.text) + outline.removed_bytes


@pytest.mark.parametrize("size", [0, 1, 100, 20_000])
def test_text_is_not_cut(size):
    """Words, escapes and characters of several bytes stay, whatever their number."""
    body = json.dumps({"messages": ['say "hi"\n' * size, "é漢" * size]}, ensure_ascii=False).encode()

    assert outline_of(body) == Outline(body)


def test_pictures_are_cut():
    """However many there are; what is left of each is longer than any name."""
    body = json.dumps({"model": "m", "messages": ["hello", *[PICTURE] * 20, "world"]}).encode()
    outline = outline_of(body)

    assert len(outline.text) < 21 * KEPT_BYTES
    assert len(outline.cuts) == 20
    assert [len(text) > KEPT_BYTES for text in json.loads(outline.text)["messages"]] == [False, *[True] * 20, False]


def test_a_body_that_is_mostly_text_is_its_own_outline():
    """To copy what is not cut would take as long as reading it."""
    body = json.dumps({"model": "m", "messages": ["word " * (MOST_KEPT_BYTES // 5), PICTURE]}).encode()

    assert outline_of(body).text is body


@pytest.mark.parametrize("numbers", [b"1,2,3," * 40_000, b"[]," * 40_000])
def test_runs_outside_strings_are_read_whole(numbers):
    """Token ids have no blanks between them, either."""
    body = b'{"model":"m","input":[%b0]}' % numbers
    found = locate(body, outline_of(body))

    assert (found.name, found.outline) == ("m", None)
    for broken in (body[:-3] + b",]}", body[:-1]):
        assert outcome(broken, outline_of(broken)) is MalformedJson
    assert json.loads(in_one_piece(edit(body, {"n": "1"}, {}))) == {"n": 1, **json.loads(body)}


@pytest.mark.parametrize("order", ["first", "last"])
def test_edit_of_a_large_body_copies_nothing(order):
    """The members come out as in a small one."""
    members = {"messages": [PICTURE, PICTURE], "n": 3, "stream_options": {"x": 1}}
    members = {"model": "m", **members} if order == "first" else {**members, "model": "m"}
    body = json.dumps(members).encode()
    changed = edit(body, {"n": "1", "top_p": "0.5"}, {"stream_options": "null", "seed": "7"})

    assert isinstance(changed, SplicedBody)
    assert sum(len(piece) for piece in changed.pieces if isinstance(piece, bytes)) < 100
    assert len(changed) == len(in_one_piece(changed))
    assert json.loads(in_one_piece(changed)) == {**members, "top_p": 0.5, "stream_options": None, "seed": 7}
    twice = edit(changed, {}, {"seed": "8", "stream_options": "{}"})
    assert json.loads(in_one_piece(twice)) == {**members, "top_p": 0.5, "stream_options": {}, "seed": 8}
