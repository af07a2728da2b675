"""Signatures of thinking blocks: how the gateway recognises, on the way back, thoughts that passed through it.

Anthropic's API signs thinking blocks, clients keep the signature unread and send it back. Ours is a versioned marker
and a digest of the text: it tells our neurons' thoughts from another provider's and whole ones from edited or cut
ones. It is no proof against forgery, and need not be: whoever forges one puts words into its own prompt.
"""

from __future__ import annotations

import hashlib

__all__ = ["Signer", "is_genuine", "sign"]

_MARKER = "cortex-thinking-1:"
_DIGEST_BYTES = 16


class Signer:
    """Signs a text that comes in pieces."""

    __slots__ = ("_digest",)

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)

    def update(self, text: str) -> None:
        """Take in the next piece."""
        self._digest.update(text.encode())

    def signature(self) -> str:
        """The signature of everything taken in so far."""
        return _MARKER + self._digest.hexdigest()


def sign(text: str) -> str:
    """The signature of a whole text."""
    signer = Signer()
    signer.update(text)
    return signer.signature()


def is_genuine(text: str, signature: object) -> bool:
    """Whether a thinking block is one of ours, unchanged."""
    return isinstance(signature, str) and signature.startswith(_MARKER) and signature == sign(text)
