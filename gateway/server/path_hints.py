"""Mistyped paths: the path that was meant where that is certain, and an error text where it is not. No HTTP.

People type base URLs by hand, with and without `/v1` and a trailing slash, and clients differ in what they append.
"""

from __future__ import annotations

import re

from gateway.proxy.endpoints import ENDPOINTS

__all__ = ["LOOKUPS", "corrected", "hint"]

LOOKUPS = ("/", "/health", "/ready", "/openapi.json", "/v1/models", "/v1/usage")
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
    if tidy in _OLLAMA:  # `/api/embeddings` ends like ours
        return _not_ours("Ollama", _OLLAMA[tidy])
    if _GEMINI.match(f"{tidy}/"):
        return _gemini_hint(tidy)
    # Longest first: a path that ends with /chat/completions also ends with /completions.
    for known in sorted((*ENDPOINTS, "/v1/models"), key=len, reverse=True):
        if tidy.endswith(known.removeprefix("/v1")):
            return (
                f"no such path; did you mean {known}? The base URL ends with /v1 for OpenAI clients "
                "and without it for Anthropic clients"
            )
    is_ollamas = tidy == "/api" or tidy.startswith("/api/")
    unknown = "no such path; the API is under /v1, and GET /v1/models lists the available models"
    return _not_ours("Ollama", "POST /v1/chat/completions") if is_ollamas else unknown


_OLLAMA = {
    "/api/chat": "POST /v1/chat/completions",
    "/api/generate": "POST /v1/completions",
    "/api/embed": "POST /v1/embeddings",
    "/api/embeddings": "POST /v1/embeddings",
    "/api/tags": "GET /v1/models",
    "/api/ps": "GET /v1/models",
    "/api/show": "GET /v1/models/{id}",
    "/api/version": "GET /health",
}
_GEMINI = re.compile(r"/v1(?:beta|alpha)\w*/(?!openai/)")  # `/v1beta/openai/` is its imitation of OpenAI's API
_GEMINI_METHODS = {"embedContent": "POST /v1/embeddings", "batchEmbedContents": "POST /v1/embeddings"}


def _gemini_hint(path: str) -> str:
    _, colon, method = path.rpartition(":")
    if not colon:
        return _not_ours("Gemini", "GET /v1/models" if "/models" in path else "POST /v1/chat/completions")
    return _not_ours("Gemini", _GEMINI_METHODS.get(method, "POST /v1/chat/completions"))


def _not_ours(api: str, endpoint: str) -> str:
    return (
        f"no such path: this gateway does not speak {api}'s API; use {endpoint} instead. It speaks OpenAI's APIs (base "
        "URL with /v1) and Anthropic's (POST /v1/messages, base URL without /v1): choose one of these in the client"
    )
