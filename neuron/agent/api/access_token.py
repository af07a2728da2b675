"""Callers that the neuron accepts: holders of its token; without a token any program that connects, but no web page."""

from __future__ import annotations

import hmac

from neuron.agent.errors import FromWebPage, Unauthorized

__all__ = ["check_caller"]


def check_caller(token: str | None, authorization: str | None, origin: str | None) -> None:
    """Check a request.

    A web page that an operator visits can send requests to loopback. Browsers mark all that change something with
    `Origin`; gateways and command lines do not send it.

    Args:
        token: Of the neuron, or None.
        authorization: The value of that header, or None.
        origin: The value of that header, or None.

    Raises:
        Unauthorized: The token is missing or wrong.
        FromWebPage: There is no token, and a browser sent the request for a page.
    """
    if token is None:
        if origin is not None:
            raise FromWebPage("web pages may not use this neuron: it has no token")
        return
    scheme, _, given = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token.encode()):
        raise Unauthorized("the neuron's token is missing or wrong: send `Authorization: Bearer …`")
