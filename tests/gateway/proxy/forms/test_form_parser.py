"""The form parser: it finds `model` at every cut, and rejects forms that python-multipart could read differently."""

import itertools
import re

import pytest
from fakes.forms import BOUNDARY, Part, a_file, a_form, a_part, read_form
from hypothesis import given
from hypothesis import strategies as st
from python_multipart.exceptions import FormParserError

from gateway.errors import MalformedMultipart, MissingModelField
from gateway.proxy.forms.form_parser import FormLimits, FormParser, ModelPart, boundary_of

MODEL = a_part(b"model", b"whisper-1")


def parse(*pieces, boundary=BOUNDARY, limits=None):
    """Return a parser that has read these pieces to the end."""
    parser = FormParser(boundary, limits)
    for piece in pieces:
        parser.feed(piece)
    parser.finish()
    return parser


def with_model(body, model, name):
    """Return the body that is sent on."""
    return body[: model.start] + name + body[model.end :]


def error_at_every_cut(body, kind, limits=None, boundary=BOUNDARY):
    """Return the message with which a body is rejected; it must not depend on how the body is cut."""
    messages = set()
    for cuts in ([], *([at] for at in range(1, len(body))), range(1, len(body))):
        edges = [0, *cuts, len(body)]
        with pytest.raises(kind) as caught:
            parse(*[body[a:b] for a, b in itertools.pairwise(edges)], boundary=boundary, limits=limits)
        messages.add(caught.value.message)
    (message,) = messages
    return message


# Valid forms ........................................................................................................


@pytest.mark.parametrize(
    "body",
    [
        a_form(MODEL, a_file(b"RIFF....")),
        a_form(a_file(b"RIFF...."), MODEL),
        a_form(a_file(b""), MODEL, a_file(b"", b"mask")),
        a_form(MODEL, after=b""),
        a_form(MODEL, after=b"\r\nfarewell"),
        a_form(MODEL, after=b" \t"),
        a_form(MODEL, before=b"This is a form.\r\n"),
        a_form(MODEL, before=b"\r\n"),
        a_form(MODEL).replace(BOUNDARY + b"\r\n", BOUNDARY + b" \t \r\n"),
        a_form(a_part(b"model", b"whisper-1", headers=b"Content-Type: text/plain; charset=utf-8\r\n")),
        a_form(b"CONTENT-DISPOSITION: Form-Data; NAME=model\r\n\r\nwhisper-1"),
        a_form(b'Content-Disposition:form-data ; name = "model" ;\r\n\r\nwhisper-1'),
        a_form(b'Content-Disposition: form-data; name="mo\\del"\r\n\r\nwhisper-1'),
        a_form(MODEL, a_part(b"file", b"x", b"; filename*=UTF-8''n%C3%A4me.wav")),
        a_form(MODEL, a_part(b"file", b"x", b'; filename="a\\"b; name=model.wav"')),
        a_form(MODEL, a_part(b"file", b"x", '; filename="ნამუშევარი.wav"'.encode())),
        a_form(a_file(b"--" + BOUNDARY[:-1] + b"\r\n--" + BOUNDARY[:-1] + b"\r\r\n"), MODEL),
        a_form(a_file(b"x--" + BOUNDARY + b"--\r\n"), MODEL),
        a_form(a_part(b"note", b'Content-Disposition: form-data; name="model"\r\n\r\nother'), MODEL),
        a_form(a_part(b"models", b"x"), a_part(b"Model", b"y"), a_part(b"model[]", b"z"), MODEL),
    ],
)
def test_model_is_found_at_every_cut(body):
    """With preambles, padding, quotes, and contents that look like boundaries."""
    start = body.index(b"whisper-1")
    assert parse(body).model == ModelPart("whisper-1", start, start + 9)
    for at in range(1, len(body)):
        assert parse(body[:at], body[at:]).model == ModelPart("whisper-1", start, start + 9), body[:at]
    assert parse(*[body[at : at + 1] for at in range(len(body))]).model.start == start


def test_model_is_known_before_the_file_after_it_has_arrived():
    """As soon as the boundary after the field is complete."""
    body = a_form(MODEL, a_file(b"x" * 1000))
    known_at = body.index(BOUNDARY, body.index(b"whisper-1")) + len(BOUNDARY)
    parser = FormParser(BOUNDARY)
    parser.feed(body[: known_at - 1])
    assert parser.model is None
    parser.feed(body[known_at - 1 : known_at])

    assert parser.model.name == "whisper-1"


def test_nothing_of_a_file_is_kept():
    """Whatever its size, and even if every line of it looks like the beginning of a boundary."""
    parser = FormParser(BOUNDARY)
    parser.feed(a_form(MODEL, a_file(b"")).partition(b"--" + BOUNDARY + b"--")[0][:-2])
    for piece in (b"x" * 65_536, (b"\r\n--" + BOUNDARY[:-1]) * 3000, b"\r\n" * 40_000):
        parser.feed(piece)
        assert len(parser._buffer) < 100


@pytest.mark.parametrize(
    ("value", "stream"),
    [
        (b"true", True),
        (b"True", True),
        (b"1", True),
        (b" on\r\n", True),
        (b"false", False),
        (b"0", False),
        (b"", False),
        (b"x" * 5000, False),
    ],
)
def test_stream_field_is_read_as_engines_read_it(value, stream):
    """Pydantic's spellings of true; any other value is false."""
    assert parse(a_form(MODEL, a_part(b"stream", value))).stream is stream


names = st.sampled_from([b"file", b"prompt", b"stream", b"timestamp_granularities[]", "სახელი".encode()])
ends = st.sampled_from([b"", b"\r\n", b"\r", b"\n", b"--", b"\r\n--", b"\r\n--" + BOUNDARY[:-1], b"x--" + BOUNDARY])
contents = st.builds(lambda a, b, c: a + b + c, st.binary(max_size=40), ends, st.binary(max_size=20)).filter(
    lambda content: re.search(rb"(?:^|[\r\n])--" + re.escape(BOUNDARY), content) is None
)
others = st.one_of(st.builds(a_part, names, contents), st.builds(a_file, contents))
models = st.text(min_size=1, max_size=20).map(str.encode).filter(lambda name: b"\r" not in name and b"\n" not in name)


@st.composite
def forms(draw):
    """Generate a form with one model, and the model's name."""
    parts = draw(st.lists(others, max_size=4))
    model = draw(models)
    parts.insert(draw(st.integers(0, len(parts))), a_part(b"model", model))
    return a_form(*parts), model


@given(forms(), models, st.data())
def test_only_the_model_changes_in_python_multiparts_reading(form, name, data):
    """And the bytes outside the model's value are the same."""
    body, model = form
    cuts = sorted(data.draw(st.lists(st.integers(0, len(body)), max_size=6)))
    found = parse(*[body[a:b] for a, b in itertools.pairwise([0, *cuts, len(body)])]).model
    outgoing = with_model(body, found, name)

    assert found.name.encode() == model
    assert outgoing[: found.start] == body[: found.start]
    assert outgoing[found.start + len(name) :] == body[found.end :]
    expected = [Part(b"model", name) if part.name == b"model" else part for part in read_form(body)]
    assert read_form(outgoing) == expected


@given(forms())
def test_offsets_do_not_depend_on_a_cut(form):
    """At every offset of every generated form."""
    body, _ = form
    whole = parse(body)
    for at in range(len(body) + 1):
        cut = parse(body[:at], body[at:])
        assert (cut.model, cut.stream) == (whole.model, whole.stream)


@given(st.binary(max_size=200))
def test_random_bytes_are_rejected(data_bytes):
    """The parser raises nothing but its two errors."""
    with pytest.raises((MalformedMultipart, MissingModelField)):
        parse(data_bytes)


@given(forms(), st.data())
def test_form_with_a_changed_byte_is_rejected_or_read_as_python_multipart_does(form, data):
    """An accepted form has the same model for the engine."""
    body, _ = form
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    try:
        found = parse(changed).model
    except (MalformedMultipart, MissingModelField):
        return
    try:
        theirs = [part for part in read_form(changed) if part.name == b"model"]
    except (FormParserError, KeyError, ValueError):  # the engine rejects it
        return
    assert [part.value for part in theirs] == [found.name.encode()]


# Invalid forms ......................................................................................................


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (a_form(a_file(b"RIFF")), "no field `model`"),
        (a_form(), "no field `model`"),
        (a_form(MODEL, MODEL), "occurs twice"),
        (a_form(MODEL, a_file(b"x"), a_part(b"model", b"")), "occurs twice"),
        (a_form(MODEL, b'content-disposition: form-data; name="mo\\del"\r\n\r\nx'), "occurs twice"),
        (a_form(a_file(b"x", name=b"model")), "not a file"),
        (a_form(a_part(b"model", b"x", b"; filename*=UTF-8''x")), "not a file"),
        (a_form(a_part(b"model", b"")), "is empty"),
        (a_form(a_part(b"model", b"x" * 1025)), "longer than 1024 bytes"),
    ],
)
def test_form_without_one_plain_model_is_rejected(body, why):
    """With the same message at every cut."""
    assert why in error_at_every_cut(body, MissingModelField)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"", "before its closing boundary"),
        (b"{}", "before its closing boundary"),
        (a_form(MODEL)[:-4], "before its closing boundary"),
        (a_form(MODEL)[:-3], "before its closing boundary"),
        (a_form(MODEL).replace(b"\r\n", b"\n"), "between CRLFs"),
        (a_form(a_file(b"\n--" + BOUNDARY + b"\n"), MODEL), "between CRLFs"),
        (a_form(a_file(b"\r--" + BOUNDARY), MODEL), "between CRLFs"),
        (a_form(a_part(b"empty", b"").removesuffix(b"\r\n"), MODEL), "between CRLFs"),
        (b"--%b\r\n%b--%b--" % (BOUNDARY, a_part(b"model", b""), BOUNDARY), "between CRLFs"),
        (a_form(a_file(b"\r\n--" + BOUNDARY + b"x"), MODEL), "goes on after it"),
        (a_form(MODEL, after=b"x"), "goes on after it"),
        (a_form(MODEL, after=b"\r\n--" + BOUNDARY + b"\r\n" + MODEL), "again after the closing one"),
        (a_form(b"\r\n\r\nx", MODEL), "one Content-Disposition header"),
        (a_form(b"Content-Type: text/plain\r\n\r\nx", MODEL), "one Content-Disposition header"),
        (a_form(b"Content-Disposition: form-data; name=a\r\n" + MODEL), "one Content-Disposition header"),
        (a_form(b"Content-Disposition: attachment; name=model\r\n\r\nx"), "one plain `name`"),
        (a_form(b"Content-Disposition: form-data\r\n\r\nx", MODEL), "one plain `name`"),
        (a_form(b'Content-Disposition: form-data; name="a"; name="model"\r\n\r\nx'), "one plain `name`"),
        (a_form(b"Content-Disposition: form-data; name*=UTF-8''model\r\n\r\nx"), "one plain `name`"),
        (a_form(b"Content-Disposition: form-data; name*0=mod; name*1=el\r\n\r\nx"), "one plain `name`"),
        (a_form(b'Content-Disposition: form-data; name="model\r\n\r\nx'), "parameters"),
        (a_form(b'Content-Disposition: form-data; name="a"b\r\n\r\nx'), "parameters"),
        (a_form(b"Content-Disposition: form-data;\r\n name=model\r\n\r\nx"), "invalid header line"),
        (a_form(b"Content-Disposition : form-data; name=model\r\n\r\nx"), "invalid header line"),
        (a_form(b"Content-Disposition: form-data; name=a\nb: c\r\n\r\nx"), "invalid header line"),
        (a_form(b"Content-Disposition: form-data; name=a\0\r\n\r\nx"), "invalid header line"),
        (a_form(a_part(b"model", b"x", headers=b"Content-Transfer-Encoding: base64\r\n")), "Content-Transfer-Encoding"),
        (a_form(a_part(b"model", b"\xff")), "not UTF-8"),
    ],
)
def test_ambiguous_form_is_rejected(body, why):
    """Bare line ends, encoded names, doubtful boundaries: with the same message at every cut."""
    assert why in error_at_every_cut(body, MalformedMultipart)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (a_form(*[a_part(b"a", b"")] * 6, MODEL), "more than 5 parts"),
        (a_form(a_part(b"a" * 200, b""), MODEL), "longer than 100 bytes"),
        (a_form(MODEL).replace(BOUNDARY + b"\r\n", BOUNDARY + b" " * 200 + b"\r\n"), "longer than 50 bytes"),
        (a_form(MODEL, before=b"x" * 200 + b"\r\n"), "more than 50 bytes before its first or after its last part"),
        (a_form(MODEL, after=b"\r\n" + b"x" * 200), "more than 50 bytes before its first or after its last part"),
    ],
)
def test_limits_of_a_form(body, why):
    """Parts, headers, padding, and the bytes around the parts: at every cut."""
    limits = FormLimits(parts=5, header_bytes=100, around_bytes=50)

    assert why in error_at_every_cut(body, MalformedMultipart, limits)


@pytest.mark.parametrize(
    ("content_type", "boundary"),
    [
        (b"multipart/form-data; boundary=abc", b"abc"),
        (b'Multipart/Form-Data; charset=utf-8; BOUNDARY="a b:c"', b"a b:c"),
        (
            b"multipart/form-data;boundary=----WebKitFormBoundary7MA4YWxkTrZu0gW;",
            b"----WebKitFormBoundary7MA4YWxkTrZu0gW",
        ),
        (b'multipart/form-data; boundary="' + b"x" * 70 + b'"', b"x" * 70),
        (b"multipart/form-data", None),
        (b"multipart/form-data; boundary=", None),
        (b'multipart/form-data; boundary=""', None),
        (b'multipart/form-data; boundary="a "', None),
        (b"multipart/form-data; boundary=a; boundary=b", None),
        (b'multipart/form-data; boundary="' + b"x" * 71 + b'"', None),
        (b'multipart/form-data; boundary="a\r\nb"', None),
        (b"multipart/form-data; boundary=a\xff", None),
    ],
)
def test_boundary_of_a_content_type(content_type, boundary):
    """1 to 70 of RFC 2046's characters, quoted or not, without a space at the end."""
    if boundary is None:
        with pytest.raises(MalformedMultipart):
            boundary_of(content_type)
    else:
        assert boundary_of(content_type) == boundary


def test_boundary_with_special_characters():
    """The boundary is not used as a regular expression."""
    boundary = b"(a.b)+c?"
    body = a_form(MODEL, boundary=boundary)

    assert parse(body, boundary=boundary).model.name == "whisper-1"
