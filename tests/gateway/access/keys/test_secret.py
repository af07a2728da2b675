"""The text of a key."""

import hashlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.keys import secret as secrets_of_keys


def test_secret_has_its_id_256_random_bits_and_a_checksum():
    """Both parts are base62, so that a double click selects the whole key."""
    secret = secrets_of_keys.new_secret("Ab1")
    found = re.fullmatch(r"ctx_Ab1_([0-9A-Za-z]{43})[0-9a-f]{8}", secret)
    assert found
    assert 43 * math.log2(62) >= 256
    assert not secrets_of_keys.is_mistyped(secret)
    assert secrets_of_keys.id_of(secret) == "Ab1"
    assert secrets_of_keys.digest_of(secret) == hashlib.sha256(secret.encode()).hexdigest()


def test_ids_and_secrets_differ():
    assert len({secrets_of_keys.new_id() for _ in range(1000)}) == 1000
    assert len({secrets_of_keys.new_secret("a")[6:49] for _ in range(1000)}) == 1000


SECRET = secrets_of_keys.new_secret(secrets_of_keys.new_id())


@given(st.integers(4, len(SECRET) - 1), st.sampled_from("0123456789abcdefXYZ"))
def test_every_typo_of_one_character_is_found(position, char):
    typo = SECRET[:position] + char + SECRET[position + 1 :]
    assert secrets_of_keys.is_mistyped(typo) == (typo != SECRET)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ctx_",
        "ctx_a_",
        "ctx__" + "x" * 51,
        "sk-" + "x" * 51,
        "ctx_a_" + "x" * 31,
        "ctx_a_" + "x" * 129,
        "ctx_a_" + "x" * 51 + "\n",
        "ctx_" + "a" * 33 + "_" + "x" * 51,
        "ctx_ä_" + "x" * 51,
        "ctx_a_" + "-" * 51,
    ],
)
def test_other_texts_are_no_secrets(text):
    assert not secrets_of_keys.is_secret(text)
    assert secrets_of_keys.id_of(text) is None
