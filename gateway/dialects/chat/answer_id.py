"""The ids that the gateway makes up for an answer."""

from __future__ import annotations

import secrets

__all__ = ["new_answer_id"]

_BYTES = 12


def new_answer_id() -> str:
    """The base of the ids that the gateway makes up for one answer, its items and its tool calls.

    The request's id will not do: a client may send one `x-request-id` for a whole conversation.
    """
    return secrets.token_hex(_BYTES)
