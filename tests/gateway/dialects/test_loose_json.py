"""Decoding JSON that other programs get slightly wrong."""

import msgspec
import pytest

from gateway.dialects import loose_json

DECODER = msgspec.json.Decoder(dict[str, str])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (b'{"a":"x"}', "x"),
        (rb'{"a":"\ud83d\ude00"}', "\U0001f600"),
        (rb'{"a":"x\ud83d"}', "x\ufffd"),
        (rb'{"a":"\\ud83d"}', r"\ud83d"),
        (b'{"a":"x\xe2\x82"}', "x\ufffd"),
        (b'{"a":"\xff\\ud83d"}', "\ufffd\ufffd"),
    ],
)
def test_half_a_character_becomes_the_replacement_character(text, value):
    """Whether an escape or the bytes were cut; everything else is decoded exactly."""
    assert loose_json.decode(DECODER, text) == {"a": value}


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"a":1}', b"[" * 100_000, b'{"a":"\xff","b":' + b"[" * 100_000])
def test_anything_else_raises_one_error(text):
    """A wrong type too, since msgspec's ValidationError is a DecodeError."""
    with pytest.raises(msgspec.DecodeError):
        loose_json.decode(DECODER, text)
