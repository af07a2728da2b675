"""The neuron's token."""

from __future__ import annotations

import hmac

from neuron.agent.errors import Unauthorized

__all__ = ["check_token"]


def check_token(token: str | None, authorization: str | None) -> None:
    """Compare the value of an `Authorization` header with the token; without a token everybody may call.

    Raises:
        Unauthorized: There is no header, or it has another token.
    """
    if token is None:
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Unauthorized("the neuron's token is missing or wrong: send `Authorization: Bearer …`")
