"""HTTP from the command line to a running gateway. Blocking."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote

import httpx

from gateway.cli.tls_trust import TlsTrust
from gateway.cli.views.fault_text import fault_text
from gateway.config.settings import Listen, Settings
from gateway.http.sockets import connect_error_reason

__all__ = [
    "ApiError",
    "GatewayAddress",
    "NoToken",
    "failure_reason",
    "get",
    "get_health",
    "get_models",
    "get_text",
    "open_client",
    "post",
    "segment",
    "send",
    "trust",
]

NEEDS_KEY = (
    "this needs a key: set CORTEX_KEY; `cortex key create NAME --verbs read,operate` on the gateway's host creates one"
)
TIMEOUT_S = 10.0  # a gateway answers within milliseconds, but an overloaded host may stall for seconds


@dataclass(frozen=True, slots=True)
class GatewayAddress:
    """The base URLs of a gateway's two ports, and the token or key; None if there is none.

    `is_remote`: An operator named it by its admin port, and its files are not on this host. Then `api` is that port,
    which has `/health` but not `/v1`.
    """

    api: str
    admin: str
    token: str | None = None
    is_remote: bool = False

    def required_token(self) -> str:
        """The token. Raises NoToken if there is none."""
        if self.token is None:
            raise NoToken(NEEDS_KEY)
        return self.token

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """The address, as seen from this host, of a gateway with these settings."""
        has_tls = settings.tls.cert is not None
        return cls(
            _local_url(settings.gateway.listen, has_tls=has_tls),
            _local_url(settings.gateway.metrics_listen, has_tls=has_tls and settings.tls.admin),
            settings.admin.token,
        )


def _local_url(listen: Listen, *, has_tls: bool) -> str:
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    scheme = "https" if has_tls else "http"
    return f"{scheme}://{Listen(loopback.get(listen.host, listen.host), listen.port)}"


class ApiError(Exception):
    """A request that got no usable answer. The text names the URL and the reason.

    Attributes:
        status: Of the answer; None if there was no answer.
        message: The gateway's error message; None if there was no answer or not one of a cortex gateway.
    """

    def __init__(self, text: str, *, status: int | None = None, message: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.message = message


class NoToken(ApiError):
    """The request needs a key or the admin token, and the operator gave none."""


def trust(tls: TlsTrust) -> None:
    """Use these certificates for every client from now on: a command talks to one gateway. Raises CannotTrust."""
    _trusted[:] = [tls.context()]


_trusted: list[ssl.SSLContext] = []


def open_client() -> httpx.Client:
    """A client for `get` and `post`. The caller closes it. Without a call of `trust` it trusts no certificate."""
    context = _trusted[0] if _trusted else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return httpx.Client(trust_env=False, timeout=TIMEOUT_S, verify=context)


def get(client: httpx.Client, url: str, keys: tuple[str, ...], *, token: str | None = None) -> dict[str, Any]:
    """The JSON object at `url`, which has at least these keys. Raises ApiError."""
    return _request(client, "GET", url, keys, token)


def get_health(client: httpx.Client, gateway: GatewayAddress) -> dict[str, Any]:
    """The gateway's `/health`. Raises ApiError."""
    body = get(client, f"{gateway.api}/health", ("status", "nodes"), token=gateway.token)
    if "catalogue" not in body:
        text = f"the gateway at {gateway.api} tells its state only to a key with the verb `read`: set CORTEX_KEY"
        raise ApiError(text, message=text)
    return body


def get_models(client: httpx.Client, gateway: GatewayAddress) -> list[dict[str, Any]]:
    """The entries of `/v1/models`. Raises ApiError."""
    url = f"{gateway.admin}/admin/models" if gateway.is_remote else f"{gateway.api}/v1/models"
    models: list[dict[str, Any]] = get(client, url, ("data",), token=gateway.token)["data"]
    return models


def segment(name: str) -> str:
    """A name as one segment of a URL's path: `/` becomes `%2F`."""
    return quote(name, safe="")


def get_text(client: httpx.Client, url: str) -> str:
    """The text at `url`. Raises ApiError."""
    try:
        response = client.get(url)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise ApiError(f"cannot reach {url}: {failure_reason(error)}") from error
    if not response.is_success:
        raise _not_a_gateway(url, response.status_code)
    return response.text


def post(
    client: httpx.Client,
    url: str,
    keys: tuple[str, ...],
    *,
    token: str,
    data: bytes = b"",
    params: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Post `data` and return the JSON object of the answer, which has at least these keys. Raises ApiError."""
    headers = {"content-type": "application/octet-stream"}
    return _request(client, "POST", url, keys, token, headers=headers, content=data, params=params)


def _request(
    client: httpx.Client,
    method: str,
    url: str,
    keys: tuple[str, ...],
    token: str | None,
    *,
    headers: Mapping[str, str] | None = None,
    **content: Any,
) -> dict[str, Any]:
    response = send(client, method, url, token=token, headers=headers or {}, **content)
    body = _json(response)
    if not body.keys() >= set(keys):
        raise _not_a_gateway(url, response.status_code)
    return body


def send(
    client: httpx.Client, method: str, url: str, *, token: str | None, headers: Mapping[str, str], **content: Any
) -> httpx.Response:
    """A successful response, whatever its body is. Raises ApiError."""
    authorization = {} if token is None else {"authorization": f"Bearer {token}"}
    try:
        response = client.request(method, url, headers={**authorization, **headers}, **content)
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
        raise ApiError(f"cannot reach {url}: {failure_reason(error)}") from error
    if not response.is_success:
        message, status = _error_message(_json(response)), response.status_code
        if status == 401:
            message = NEEDS_KEY if token is None else f"the gateway rejects the key: {message}"
        raise ApiError(f"{message} ({method} {url}: status {status})", status=status, message=message)
    return response


def _json(response: httpx.Response) -> dict[str, Any]:
    """The JSON object of a response. Raises ApiError if it is something else."""
    try:
        body = response.json()
    except ValueError as error:
        raise _not_a_gateway(str(response.url), response.status_code) from error
    if not isinstance(body, dict):
        raise _not_a_gateway(str(response.url), response.status_code)
    return body


def failure_reason(error: Exception) -> str:
    """The reason in words. The text of an httpx error repeats the OSError, with its number."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            hint = "; --ca names certificates to trust" if isinstance(cause, ssl.SSLCertVerificationError) else ""
            return connect_error_reason(cause) + hint
        if isinstance(cause, OSError) and cause.errno is not None and cause.errno > 0:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return str(error).rstrip(".")


def _not_a_gateway(url: str, status: int) -> ApiError:
    return ApiError(f"the server at {url} is not a cortex gateway (it answered with status {status})", status=status)


def _error_message(body: Mapping[str, Any]) -> str:
    error = body.get("error")
    faults = [*body.get("faults", ()), *body.get("neurons", {}).get("faults", ())]
    if error is None and faults:  # a file that was refused
        return "\n".join(fault_text(fault, fault.get("path", "models.toml")) for fault in faults)
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
