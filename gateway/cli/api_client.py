"""How the command line asks a gateway over HTTP. Blocking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

__all__ = ["NoAnswer", "client", "get", "message_of", "post"]

ANSWER_S = 10.0  # a gateway answers in milliseconds; a machine that has too much to do stands still for seconds


class NoAnswer(Exception):
    """What was asked is not there, or is no cortex; the text names it and says why. `status` None: nobody answered."""

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def client() -> httpx.Client:
    """To be closed by who asked for it."""
    return httpx.Client(trust_env=False, timeout=ANSWER_S)


def get(
    client: httpx.Client, url: str, keys: tuple[str, ...], headers: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The JSON object at `url`, which has these keys. Raises NoAnswer if there is none."""
    return _ask(client, "GET", url, keys, headers)


def post(
    client: httpx.Client,
    url: str,
    keys: tuple[str, ...],
    *,
    token: str,
    data: bytes = b"",
    params: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """The JSON object that the admin API answers with. Raises NoAnswer if it does not."""
    headers = {"authorization": f"Bearer {token}", "content-type": "application/octet-stream"}
    return _ask(client, "POST", url, keys, headers, content=data, params=params)


def _ask(
    client: httpx.Client, method: str, url: str, keys: tuple[str, ...], headers: Mapping[str, str] | None, **what: Any
) -> dict[str, Any]:
    try:
        answer = client.request(method, url, headers=headers, **what)
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise NoAnswer(f"no answer from {url}: {error}") from error
    except ValueError as error:  # not JSON
        raise _nobody_we_know(url, answer.status_code) from error
    if not isinstance(body, dict) or (answer.is_success and not body.keys() >= set(keys)):
        raise _nobody_we_know(url, answer.status_code)
    if not answer.is_success:
        raise NoAnswer(f"{url} says {answer.status_code}: {message_of(body)}", answer.status_code)
    return body


def _nobody_we_know(url: str, status: int) -> NoAnswer:
    return NoAnswer(f"{url} is not a cortex gateway's (status {status})", status)


def message_of(body: Mapping[str, Any]) -> str:
    """An error envelope's text (contract section 10)."""
    error = body.get("error")
    return str(error.get("message", error)) if isinstance(error, dict) else str(error)
