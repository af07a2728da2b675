"""What `cortex neuron status` and `cortex neuron logs` read and print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import httpx
from rich.console import Group, RenderableType
from rich.table import Table

from gateway.cli.api_client import ApiError, failure_reason
from gateway.cli.terminal import table

__all__ = ["NeuronAddress", "read_state", "render", "stream"]

TIMEOUT_S = 10.0


class NeuronAddress(NamedTuple):
    """The base URL of a neuron, and its token or None."""

    url: str
    token: str | None


@contextmanager
def stream(address: NeuronAddress, path: str) -> Iterator[Iterator[bytes]]:
    """The body at a path as it arrives, without a deadline between pieces. Raises ApiError."""
    headers = {} if address.token is None else {"authorization": f"Bearer {address.token}"}
    timeout = httpx.Timeout(TIMEOUT_S, read=None)
    url = f"{address.url}{path}"
    try:
        with (
            httpx.Client(trust_env=False, timeout=timeout, headers=headers) as client,
            client.stream("GET", url) as answer,
        ):
            if answer.status_code != 200:
                answer.read()
                raise ApiError(f"{_error_text(answer)} ({url}: status {answer.status_code})", status=answer.status_code)
            yield answer.iter_raw()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ApiError(f"cannot reach {address.url}: {failure_reason(error)}") from error


def read_state(address: NeuronAddress) -> dict[str, Any]:
    """`discovery`, `health` and `models` of a neuron. Raises ApiError."""
    state = {}
    for name in ("discovery", "health", "models"):
        with stream(address, f"/{name}") as pieces:
            body = b"".join(pieces)
        try:
            state[name] = httpx.Response(200, content=body).json()
        except ValueError as error:
            raise ApiError(f"the server at {address.url} is not a neuron", status=200) from error
    return state


def _error_text(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["error"])
    except (ValueError, KeyError, TypeError):
        return "the server is not a neuron"


def render(state: dict[str, Any]) -> RenderableType:
    """Two tables, and one of the processes that take device memory and are no engines of the neuron."""
    foreign = _foreign(state)
    return Group(_devices(state), _models(state), *([foreign] if foreign.row_count else []))


def _devices(state: dict[str, Any]) -> Table:
    names = {device["index"]: device["name"] for device in state["discovery"]["devices"]}
    result = table("devices", "device", "used / total MB", "busy", "temperature", "power")
    for device in state["health"]["devices"]:
        total = device["vram_used_mb"] + device["vram_free_mb"]
        power = device.get("power_w")
        result.add_row(
            f"{device['index']}: {names.get(device['index'], '?')}",
            f"{device['vram_used_mb']} / {total}",
            f"{device['utilization_pct']} %",
            f"{device['temp_c']} °C" if device["temp_c"] else "-",
            "-" if power is None else f"{power:.0f} W",
        )
    return result


def _foreign(state: dict[str, Any]) -> Table:
    result = table("other users of the devices", "device", "process", "name", "memory MB")
    for device in state["health"]["devices"]:
        for process in device.get("foreign", ()):
            result.add_row(str(device["index"]), str(process["pid"]), process["name"], str(process["memory_mb"]))
    return result


def _models(state: dict[str, Any]) -> Table:
    counters = {entry["id"]: entry for entry in state["health"].get("models", ())}
    result = table("models", "model", "engine", "state", "devices", "memory MB", "in flight", "queued")
    for entry in state["models"]:
        counter = counters.get(entry["id"], {})
        result.add_row(
            entry["id"],
            entry["harness"],
            _status(entry),
            ",".join(map(str, entry["devices"])) or "-",
            _text(entry["vram_used_mb"]),
            _text(counter.get("in_flight")),
            _text(counter.get("queue_depth")),
        )
    return result


def _status(entry: dict[str, Any]) -> str:
    if entry.get("progress") is not None:
        return f"{entry['status']} {entry['progress']:.0%}"
    notes = [text.splitlines()[0] for text in (entry.get("reason"), entry.get("notice")) if text]
    return ": ".join([entry["status"], *notes])


def _text(value: object) -> str:
    return "-" if value is None else str(value)
