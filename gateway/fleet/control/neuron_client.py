"""`NeuronClient`: the neuron control API over HTTP. When to call is decided by `poller.py` and `fleet/loading`.

Engines without a neuron get the same API from `engine_client.py`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from operator import attrgetter
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import SplitResult, quote, urlsplit

import httpx
import msgspec
import trio

from gateway.fleet.control.model_list import ModelListReader
from gateway.fleet.control.types import (
    Discovery,
    Health,
    NeuronMalformed,
    NeuronModel,
    NeuronRefused,
    NeuronUnreachable,
)
from gateway.http import tls
from gateway.http.error_body import decode_error_body, error_text
from gateway.http.sockets import TCP_KEEPALIVE_OPTIONS, connect_error_reason

# The largest answer is /models. 8 MiB is some ten thousand models, and little memory for the gateway.
ANSWER_LIMIT_BYTES = 8 * 1024 * 1024
ERROR_TEXT_LIMIT = 500  # characters of a neuron's error text that log lines and clients get

# Two per poll, one per newly loaded model, and loads that stay open for many minutes.
CONNECTIONS_PER_NEURON = 16
IDLE_CONNECTION_S = 3.0  # servers commonly close idle connections after 5 s

LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "0.0.0.0", "::1"})

T = TypeVar("T")


class _Endpoint(msgspec.Struct, frozen=True):
    url: str


# Calls ................................................................................................................


class ControlHttp:
    """HTTP calls to one server: JSON out, a body of limited size back. The owner closes it.

    Args:
        endpoint: Base URL as configured.
        authorization: Value of a header to send with every call, or None.
        headers: Further headers of every call.
        transport: In place of the network, for tests.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        authorization: str | None = None,
        headers: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        # identity, and raw bytes below: a compressed answer could inflate beyond any limit.
        headers = {
            "accept": "application/json",
            "accept-encoding": "identity",
            "user-agent": "cortex",
            **(headers or {}),
        }
        if authorization is not None:
            headers["authorization"] = authorization
        self._http = httpx.AsyncClient(
            transport=transport or _network(),
            timeout=None,  # noqa: S113 - scopes sit with the caller; httpx's own 5 s would end a load
            headers=headers,
            follow_redirects=False,
            trust_env=False,
        )

    async def call(self, method: str, path: str, body: Any = None) -> bytes:
        """The body of a 200. Raises NeuronError for every other outcome."""
        content = None if body is None else msgspec.json.encode(body)
        headers = None if body is None else {"content-type": "application/json"}
        async with (
            _translated(),
            self._http.stream(method, f"{self.endpoint}{path}", content=content, headers=headers) as answer,
        ):
            text = await _read(answer)
        if answer.status_code != 200:
            raise NeuronRefused(answer.status_code, _refusal_text(text))
        return text

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.aclose()


def _network() -> httpx.AsyncHTTPTransport:
    """Connections with TCP keep-alive: a load is silent for many minutes."""
    return httpx.AsyncHTTPTransport(
        limits=httpx.Limits(
            max_connections=CONNECTIONS_PER_NEURON,
            max_keepalive_connections=CONNECTIONS_PER_NEURON,
            keepalive_expiry=IDLE_CONNECTION_S,
        ),
        trust_env=False,
        verify=tls.context(),
        socket_options=TCP_KEEPALIVE_OPTIONS,
    )


class NeuronClient:
    """One neuron's control API. One client per neuron, so that a neuron that hangs uses no connections of others.

    No method has a deadline: the caller sets a cancel scope. A cancelled call closes its connection. Every method
    raises `NeuronError`. The owner closes the client, with `async with` or `aclose`.

    Args:
        endpoint: Base URL as configured, without a trailing slash.
        token: `[[neurons]] token`, or None.
        transport: In place of the network, for tests.
    """

    def __init__(
        self, endpoint: str, *, token: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        authorization = None if token is None else f"Bearer {token}"
        self._http = ControlHttp(endpoint, authorization=authorization, transport=transport)
        self._listed = ModelListReader(endpoint, NeuronModel, attrgetter("id"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.aclose()

    async def discovery(self) -> Discovery:
        """Its hardware; constant while it runs."""
        return decode(await self._http.call("GET", "/discovery"), Discovery)

    async def health(self) -> Health:
        """Its readings, pre-warming and counters."""
        return decode(await self._http.call("GET", "/health"), Health)

    async def models(self) -> tuple[NeuronModel, ...]:
        """Every model it lists, in its own order."""
        return self._listed.read(await self._http.call("GET", "/models"))

    async def endpoint(self, model_id: str) -> str:
        """The base URL of a loaded model's inference API as seen from this gateway, without a trailing slash."""
        path = f"/models/{quote(model_id, safe='')}/endpoint"
        found = decode(await self._http.call("GET", path), _Endpoint)
        return loopback_rewrite(found.url, self._http.endpoint).rstrip("/")

    async def load(
        self,
        model_id: str,
        harness: str,
        *,
        quant: str | None = None,
        tensor_parallel: int | None = None,
        devices: Sequence[int] | None = None,
    ) -> None:
        """Return when the model is loaded, which can take many minutes.

        `already loaded` counts as success. Cancelling the call does not stop the load: the API has no call for that.
        """
        body = {
            "model_id": model_id,
            "harness": harness,
            "quant": quant,
            "tensor_parallel": tensor_parallel,
            "devices": devices,
        }
        try:
            await self._http.call("POST", "/models/load", body)
        except NeuronRefused as refusal:
            if "already loaded" not in refusal.text.lower():
                raise

    async def unload(self, model_id: str) -> None:
        """Return when the memory is free. NeuronRefused with 404 means "not here" or "refused"."""
        await self._http.call("POST", "/models/unload", {"model_id": model_id})


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Translates the errors of httpx."""
    try:
        yield
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:  # UnicodeError: a label of the host is too long
        raise NeuronUnreachable(connect_error_reason(error)) from error


async def _read(answer: httpx.Response) -> bytes:
    received = bytearray()
    # httpx reads through nested async generators. Leaving the loop leaves the inner ones to the garbage collector;
    # a cancellation arrives in the innermost one and unwinds them all.
    with trio.CancelScope() as too_long:
        async for chunk in answer.aiter_raw():
            received += chunk
            if len(received) > ANSWER_LIMIT_BYTES:
                too_long.cancel()
    if len(received) > ANSWER_LIMIT_BYTES:
        raise NeuronMalformed(f"answer longer than {ANSWER_LIMIT_BYTES} bytes")
    return bytes(received)


def decode(text: bytes, shape: type[T]) -> T:
    """The answer as `shape`. Raises NeuronMalformed."""
    try:
        return msgspec.json.decode(text, type=shape)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise NeuronMalformed(str(error)) from error


def _refusal_text(text: bytes) -> str:
    """The error text from any known form of error body, else the whole body."""
    found = error_text(decode_error_body(text)) or text.decode(errors="replace")
    return found.strip()[:ERROR_TEXT_LIMIT]


# Loopback URLs ........................................................................................................


def loopback_rewrite(inference_url: str, configured_endpoint: str) -> str:
    """A neuron's inference URL as seen from this gateway.

    A neuron does not know its outside name and reports `localhost`: the host is replaced by that of the configured
    endpoint. Scheme, port and path stay, a trailing slash goes. Any other host, or a string that is not a URL, is
    returned unchanged.
    """
    inference, configured = _split(inference_url), _split(configured_endpoint)
    if inference is None or configured is None or inference.hostname not in LOOPBACK_HOSTS:
        return inference_url
    userinfo, at, _ = inference.netloc.rpartition("@")
    host = configured.hostname or ""
    host = f"[{host}]" if ":" in host else host
    port = "" if inference.port is None else f":{inference.port}"
    return inference._replace(netloc=f"{userinfo}{at}{host}{port}").geturl().rstrip("/")


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        _ = parts.port  # parsed on access, and may raise
    except ValueError:
        return None
    return parts if parts.scheme and parts.hostname else None
