"""Signatures of thinking blocks, by which the gateway recognises blocks that it wrote itself.

Anthropic's API signs thinking blocks; clients keep the signature and send it back. The gateway's signature is a version
marker and a digest of the text. It separates blocks of these neurons from those of another provider, and complete
blocks from edited or truncated ones. It does not protect against forgery: a client that forges one only changes its own
prompt.
"""

from __future__ import annotations

import hashlib

__all__ = ["Signer", "is_genuine", "sign"]

_MARKER = "cortex-thinking-1:"
_DIGEST_BYTES = 16


class Signer:
    """Signs a text that arrives in pieces."""

    __slots__ = ("_digest",)

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def update(self, text: str) -> None:
        """Add the next piece."""
        self._digest.update(text.encode())

    def signature(self) -> str:
        """The signature of all pieces so far."""
        return _MARKER + self._digest.hexdigest()


def sign(text: str) -> str:
    """The signature of a whole text."""
    signer = Signer()
    signer.update(text)
    return signer.signature()


def is_genuine(text: str, signature: object) -> bool:
    """Whether this gateway signed exactly this text."""
    return isinstance(signature, str) and signature.startswith(_MARKER) and signature == sign(text)
