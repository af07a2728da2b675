"""Paths as clients get them wrong: what was meant, where that is beyond doubt, and else what to say. No HTTP.

Base URLs are typed by hand, with and without `/v1` and a last slash, and clients differ in what they add to them.
"""

from __future__ import annotations

import re

from gateway.proxy.endpoints import ENDPOINTS

__all__ = ["WINDOWS", "hint", "meant"]

WINDOWS = ("/", "/health", "/ready", "/openapi.json", "/v1/models")
"""What is looked at, besides single models."""

_SLASHES = re.compile(r"/{2,}")
_ONE_MODEL = re.compile(r"/+v1/+models/+(?=[^/])")
_NOT_KEPT = "/v1/responses/"


def meant(path: str) -> str | None:
    """The path it stands for, if only slashes are too many: at its end, or in a row. None if it is not one of ours."""
    tidy = _SLASHES.sub("/", path)
    tidy = tidy.removesuffix("/") or "/"
    if tidy in ENDPOINTS or tidy in WINDOWS:
        return tidy
    # An id is whatever it is, slashes and all.
    return _ONE_MODEL.sub("/v1/models/", path, count=1) if _ONE_MODEL.match(path) else None


def hint(path: str) -> str:
    """What to tell who asked for a path that is not there."""
    tidy = _SLASHES.sub("/", path).removesuffix("/")
    if tidy.startswith(_NOT_KEPT):
        return "responses are not kept here: there is POST /v1/responses, and nothing to ask about one afterwards"
    # The longest first: what ends with /chat/completions ends with /completions as well.
    for known in sorted((*ENDPOINTS, "/v1/models"), key=len, reverse=True):
        if tidy.endswith(known.removeprefix("/v1")):
            return (
                f"no such path; did you mean {known}? The base URL ends with /v1 for OpenAI's clients, "
                "and before it for Anthropic's"
            )
    return "no such path; inference is under /v1, what can be asked for is at /v1/models"
