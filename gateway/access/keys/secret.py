"""The text of a key: `ctx_<id>_<secret>`. What is stored of it is its SHA-256.

The secret is 43 base62 characters with 256 random bits, and 8 hexadecimal digits: the CRC-32 of all before it, by which
scanners of source code and cortex itself recognise a mistyped key.
"""

from __future__ import annotations

import re
import secrets
import zlib
from hashlib import sha256

__all__ = ["PREFIX", "digest_of", "id_of", "is_mistyped", "is_secret", "new_id", "new_secret"]

PREFIX = b"ctx_"
ID_CHARACTERS = 10  # 59 bits: ids of one store do not meet by chance
RANDOM_CHARACTERS = 43  # 62 ** 43 > 2 ** 256
CHECKSUM_CHARACTERS = 8
_BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SHAPE = re.compile(r"ctx_(?P<id>[0-9A-Za-z]{1,32})_[0-9A-Za-z]{32,128}")


def new_id() -> str:
    """An id that no key has yet, by chance."""
    return "".join(secrets.choice(_BASE62) for _ in range(ID_CHARACTERS))


def new_secret(key_id: str) -> str:
    """A new secret for the key with this id."""
    number, digits = secrets.randbits(256), ""
    for _ in range(RANDOM_CHARACTERS):
        number, digit = divmod(number, len(_BASE62))
        digits += _BASE62[digit]
    text = f"ctx_{key_id}_{digits}"
    return text + _checksum(text)


def digest_of(secret: str) -> str:
    """What the store has of a secret: 64 hexadecimal digits, as `printf %s "$KEY" | sha256sum` prints them."""
    return sha256(secret.encode()).hexdigest()


def is_secret(text: str) -> bool:
    """Whether the text has the form of a key's secret, with or without a checksum of ours."""
    return _SHAPE.fullmatch(text) is not None


def id_of(text: str) -> str | None:
    """The id in a text that has the form of a secret; None if it has another form."""
    found = _SHAPE.fullmatch(text)
    return None if found is None else found["id"]


def is_mistyped(text: str) -> bool:
    """Whether the checksum contradicts the rest."""
    return _checksum(text[:-CHECKSUM_CHARACTERS]) != text[-CHECKSUM_CHARACTERS:]


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'replace')):08x}"
