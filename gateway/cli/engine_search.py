"""Finding neurons and engines on hosts, by asking the ports where they usually listen. Blocking."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx

__all__ = ["FoundServer", "InvalidHost", "endpoints_on", "search"]

TIMEOUT_S = 2.0
PARALLEL = 16
# Where each listens by default; see docs/engines.md.
USUAL_PORTS = {13131: None, 8000: "vllm", 8080: "llamacpp", 30000: "sglang", 11434: "ollama", 1234: "lmstudio"}
# What engines write into `owned_by` of their models.
OWNERS = {"vllm": "vllm", "llamacpp": "llamacpp", "sglang": "sglang", "library": "ollama"}


class InvalidHost(ValueError):
    """The text is neither a host, nor host:port, nor a URL."""


@dataclass(frozen=True, slots=True)
class FoundServer:
    """A server that answered.

    Args:
        endpoint: Its base URL.
        kind: "neuron", or "openai" for an engine.
        name: A name for it: that of a neuron's host, or the host of the endpoint.
        engine: What kind of engine it seems to be; None if that is unknown.
        models: The models it lists: id, and the harness of a neuron's model or None.
    """

    endpoint: str
    kind: str
    name: str
    engine: str | None
    models: tuple[tuple[str, str | None], ...]


def endpoints_on(host: str) -> list[str]:
    """The base URLs to ask: the one that is given, or those of all usual ports of a host. Raises InvalidHost."""
    url = host if "://" in host else f"http://{host}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidHost(f"{host!r} is no host: {error}") from error
    if not parts.hostname or parts.scheme not in {"http", "https"} or parts.username:
        raise InvalidHost(f"{host!r} is no host; write for example gpu-1, gpu-1:8000 or https://gpu-1")
    if port is not None or "://" in host:
        return [url.rstrip("/").removesuffix("/v1")]
    name = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return [f"{parts.scheme}://{name}:{usual}" for usual in USUAL_PORTS]


def search(endpoints: Iterable[str]) -> list[FoundServer]:
    """The servers that answer at these base URLs, in their order."""
    with httpx.Client(trust_env=False, timeout=TIMEOUT_S) as client, ThreadPoolExecutor(PARALLEL) as threads:
        found = threads.map(lambda endpoint: _ask(client, endpoint), endpoints)
        return [server for server in found if server is not None]


def _ask(client: httpx.Client, endpoint: str) -> FoundServer | None:
    host = urlsplit(endpoint).hostname or endpoint
    discovery = _get(client, f"{endpoint}/discovery")
    if isinstance(discovery, dict) and "hostname" in discovery:
        models = _entries(_get(client, f"{endpoint}/models"))
        ids = tuple((entry["id"], str(entry.get("harness") or "") or None) for entry in models)
        return FoundServer(endpoint, "neuron", str(discovery["hostname"]) or host, None, ids)
    listing = _get(client, f"{endpoint}/v1/models")
    if listing is None:
        return None
    entries = _entries(listing)
    owner = next((str(entry.get("owned_by")) for entry in entries), "")
    engine = OWNERS.get(owner) or USUAL_PORTS.get(urlsplit(endpoint).port or 0)
    return FoundServer(endpoint, "openai", host, engine, tuple((entry["id"], None) for entry in entries))


def _get(client: httpx.Client, url: str) -> Any:
    """The JSON of a successful answer, else None."""
    try:
        response = client.get(url)
        return response.json() if response.is_success else None
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError, ValueError):
        return None


def _entries(listing: Any) -> list[dict[str, Any]]:
    """The models of a list, or of an object with `data` or `models`."""
    if isinstance(listing, dict):
        listing = listing.get("data", listing.get("models"))
    entries = listing if isinstance(listing, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]]
