"""Mistyped paths: the path that was meant where that is certain, and an error text where it is not. No HTTP.

People type base URLs by hand, with and without `/v1` and a trailing slash, and clients differ in what they append.
"""

from __future__ import annotations

import re

from gateway.proxy.endpoints import ENDPOINTS

__all__ = ["LOOKUPS", "corrected", "hint"]

LOOKUPS = ("/", "/health", "/ready", "/openapi.json", "/v1/models")
"""The public paths that are read with GET, besides those of single models."""

_SLASHES = re.compile(r"/{2,}")
_ONE_MODEL = re.compile(r"/+v1/+models/+(?=[^/])")
_STORED_RESPONSE = "/v1/responses/"


def corrected(path: str) -> str | None:
    """The known path that this path differs from only by extra slashes; None if there is none."""
    tidy = _SLASHES.sub("/", path)
    tidy = tidy.removesuffix("/") or "/"
    if tidy in ENDPOINTS or tidy in LOOKUPS:
        return tidy
    # A model id may contain slashes of its own, so only those before it are corrected.
    return _ONE_MODEL.sub("/v1/models/", path, count=1) if _ONE_MODEL.match(path) else None


def hint(path: str) -> str:
    """The text of the 404 for a path that the public port does not have."""
    tidy = _SLASHES.sub("/", path).removesuffix("/")
    if tidy.startswith("/admin/"):
        return "no such path; the admin API is on the metrics port ([gateway] metrics_listen)"
    if tidy.startswith(_STORED_RESPONSE):
        return "this gateway does not store responses: only POST /v1/responses is supported"
    # Longest first: a path that ends with /chat/completions also ends with /completions.
    for known in sorted((*ENDPOINTS, "/v1/models"), key=len, reverse=True):
        if tidy.endswith(known.removeprefix("/v1")):
            return (
                f"no such path; did you mean {known}? The base URL ends with /v1 for OpenAI clients "
                "and without it for Anthropic clients"
            )
    return "no such path; the API is under /v1, and GET /v1/models lists the available models"
