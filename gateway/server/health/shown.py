"""How much of `/health` the current request may see."""

from __future__ import annotations

from typing import Any

from gateway.access.admission import Access
from gateway.errors import InvalidApiKey, ServiceUnavailable
from gateway.server.quart_app import raw_headers

__all__ = ["health_shown"]


def health_shown(access: Access, body: dict[str, Any]) -> dict[str, Any]:
    """All of it in open mode and for a key with the verb `read`; else whether the gateway and its neurons serve."""
    return body if access.mode == "open" or _may_read(access) else {key: body[key] for key in ("status", "nodes")}


def _may_read(access: Access) -> bool:
    try:
        key = access.authenticate(raw_headers())
    except (InvalidApiKey, ServiceUnavailable):  # load balancers ask without a key, and get an answer
        return False
    return key is not None and "read" in key.verbs
