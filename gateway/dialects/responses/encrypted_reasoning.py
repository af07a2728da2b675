"""`encrypted_content` of reasoning items: a model's reasoning in a form that clients keep and send back unread.

Clients such as Codex keep only `encrypted_content` of a reasoning item. It is the compressed text with a message
authentication code by the gateway's own key. So what comes back is exactly what a gateway with this key wrote, and
content of another provider is recognised and ignored. It is not secret: the client gets the same text readable.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import zlib

__all__ = ["decode", "encode"]

_MARKER = "cortex-reasoning-1:"
_CODE_BYTES = 16
_PURPOSE = b"cortex reasoning"  # the same key may authenticate other things
_TEXT_LIMIT_BYTES = 16 * 1024 * 1024


def encode(text: str, key: bytes) -> str:
    """The `encrypted_content` for a text."""
    packed = zlib.compress(text.encode("utf-8", "replace"), 1)
    return _MARKER + base64.urlsafe_b64encode(_code(packed, key) + packed).decode()


def decode(content: object, key: bytes) -> str | None:
    """The text in an `encrypted_content`; None unless a gateway with this key wrote it."""
    if not isinstance(content, str) or not content.startswith(_MARKER):
        return None
    try:
        data = base64.urlsafe_b64decode(content.removeprefix(_MARKER))
    except (binascii.Error, ValueError):
        return None
    code, packed = data[:_CODE_BYTES], data[_CODE_BYTES:]
    if not hmac.compare_digest(code, _code(packed, key)):
        return None
    return zlib.decompressobj().decompress(packed, _TEXT_LIMIT_BYTES).decode("utf-8", "replace")


def _code(packed: bytes, key: bytes) -> bytes:
    return hashlib.blake2b(_PURPOSE + packed, key=key, digest_size=_CODE_BYTES).digest()
