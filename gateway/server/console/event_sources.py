"""What becomes events of the console: the fleet, the aliases, the problems, the requests and the log."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from itertools import islice
from typing import Any, Final

import msgspec
import trio

from catalogue.models import Catalogue
from gateway.aliases.warm_swap import WarmSwaps
from gateway.fleet.loading.drain import Drains
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.routing.queue import QueueView
from gateway.fleet.snapshot import ModelSnapshot, NodeSnapshot
from gateway.fleet.state import Fleet
from gateway.server.console.figures import FigureHistory
from gateway.server.request_views import ended_request_json, live_request_json
from gateway.telemetry.recent_log import RecentLog
from gateway.telemetry.request_log import RequestLog

__all__ = ["LogSource", "RequestSource", "StateSource", "fleet_state"]

LIVE_LISTED: Final = 200  # requests in one event; `live_total` counts all
ENDED_PER_TICK: Final = 30  # `ended_left_out` counts the others; what failed comes first
ENDED_AT_FIRST: Final = 200
ID_COLUMNS: Final = ("request_id", "received_at", "path", "alias", "model", "node")
LIVE_COLUMNS: Final = (*ID_COLUMNS, "state", "position", "priority", "elapsed_s", "tokens")
ENDED_COLUMNS: Final = (
    *ID_COLUMNS,
    *("outcome", "error", "retries", "hedge", "first_token_ms", "total_ms", "completion_tokens"),
)
LOG_AT_FIRST: Final = 300
LOG_PER_TICK: Final = 100


class StateSource:
    """An event that has the whole of a state, whenever it has changed.

    Args:
        kind: The name of the event.
        read: Returns the state.
    """

    def __init__(self, kind: str, read: Callable[[], object]) -> None:
        self.kind = kind
        self._read = read
        self._last = b""

    def everything(self) -> bytes:
        """The state."""
        data = _encode(self._read())
        if data != self._last:
            self._last = b""  # or a page that opens now would keep this state if the next call finds the last one again
        return data

    def changes(self) -> bytes | None:
        """The state, if it is another one than at the last call, or a page has opened with another one since."""
        data = _encode(self._read())
        if data == self._last:
            return None
        self._last = data
        return data

    def restart(self) -> None:
        """Send the state at the next call in any case."""
        self._last = b""


class RequestSource:
    """The running requests, those that ended since the last event, and the figures. Sent at each tick: pages see by it
    that they are connected.
    """

    kind = "request"

    def __init__(self, requests: RequestLog, figures: FigureHistory) -> None:
        self._requests = requests
        self._figures = figures
        self._served = 0
        self._points = 0

    def everything(self) -> bytes:
        """The last requests, and the last hour."""
        ended = list(islice(self._requests.recent.newest_first(), ENDED_AT_FIRST))
        body = self._live() | {
            "ended": _table([ended_request_json(record) for record in reversed(ended)], ENDED_COLUMNS),
            "ended_left_out": 0,
            "points": list(self._figures.points),
        }
        return _encode(body)

    def changes(self) -> bytes:
        """Always something."""
        count = self._requests.served - self._served
        self._served = self._requests.served
        ended = list(islice(self._requests.recent.newest_first(), count))
        if len(ended) > ENDED_PER_TICK:
            is_ok = [record.outcome == "ok" for record in ended]
            failed_first = sorted(range(len(ended)), key=is_ok.__getitem__)
            ended = [ended[place] for place in sorted(failed_first[:ENDED_PER_TICK])]
        body = self._live() | {
            "ended": _table([ended_request_json(record) for record in reversed(ended)], ENDED_COLUMNS),
            "ended_left_out": count - len(ended),
            "rates": self._figures.now(),
        }
        if self._figures.count != self._points:
            self._points = self._figures.count
            body["point"] = self._figures.newest
        return _encode(body)

    def restart(self) -> None:
        """The next event has what ends from now on."""
        self._served = self._requests.served
        self._points = self._figures.count
        self._figures.restart()

    def _live(self) -> dict[str, Any]:
        now = trio.current_time()
        live = self._requests.live
        listed = [live_request_json(record, now) for record in islice(live.values(), LIVE_LISTED)]
        return {
            "live": _table(listed, LIVE_COLUMNS),
            "live_total": len(live),
        }


class LogSource:
    """The events of the log."""

    kind = "log"

    def __init__(self, recent: RecentLog) -> None:
        self._recent = recent
        self._number = 0

    def everything(self) -> bytes:
        """The last events."""
        return _encode({"events": self._recent.newest(LOG_AT_FIRST), "newest": self._recent.number})

    def changes(self) -> bytes | None:
        """The events since the last call; of very many, the last ones."""
        new = self._recent.number - self._number
        self._number = self._recent.number
        if not new:
            return None
        return _encode({"events": self._recent.newest(min(new, LOG_PER_TICK)), "newest": self._number})

    def restart(self) -> None:
        """The next event has what is logged from now on."""
        self._number = self._recent.number


def fleet_state(
    fleet: Fleet,
    drains: Drains,
    scheduler: LoadScheduler,
    swaps: WarmSwaps,
    queues: Callable[[], Sequence[QueueView]],
    *,
    catalogue: Catalogue,
) -> dict[str, Any]:
    """The neurons as the pages draw them, without ages: those change at every look."""
    return {
        "nodes": [_node(node, drains.view(node.name).state, catalogue) for node in fleet.snapshot().nodes],
        "loads": [
            {
                "node": load.node,
                "model": load.model,
                "devices": load.devices,
                "elapsed_s": round(load.elapsed_s),
                "estimate_s": load.estimate_s,
            }
            for load in scheduler.loads()
        ],
        "queue": [
            {"model": queue.model, "waiting": queue.waiting_for_slot + queue.waiting_for_load} for queue in queues()
        ],
        "swaps": [asdict(swap) | {"elapsed_s": _whole(swap.elapsed_s)} for swap in swaps.views()],
    }


def _node(node: NodeSnapshot, drain: str, catalogue: Catalogue) -> dict[str, Any]:
    return {
        "name": node.name,
        "endpoint": node.endpoint,
        "kind": node.kind,
        "healthy": node.healthy,
        "drain": drain,
        "failure": node.failure,
        "leases": node.leases,
        "devices": node.devices,
        "pending": node.activation.awaited,
        "models": [_model(model, catalogue) for model in node.models],
    }


def _model(model: ModelSnapshot, catalogue: Catalogue) -> dict[str, Any]:
    profile = catalogue.models.get(model.id)
    return {
        "id": model.id,
        "status": model.status,
        "devices": model.devices,
        "vram_used_mb": model.vram_used_mb,
        "vram_needed_mb": None if profile is None else profile.vram_mb,
        "servable": model.servable_ok,
        "reason": model.reason or model.servable_reason,
        "leases": model.leases,
        "queue_depth": model.queue_depth,
        "progress": model.progress,
        "engine": model.engine or model.harness,
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds)


def _table(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """The fields that the list of requests shows, by column: each open page gets these bytes. Of a key, its name."""
    columns = {name: _column([row[name] for row in rows]) for name in names}
    columns["key"] = _column([row["key"] and row["key"]["name"] for row in rows])
    return {"count": len(rows), "columns": columns if rows else {}}


def _column(values: list[Any]) -> Any:
    """A list, or the one value that all rows have."""
    return values[0] if values and values.count(values[0]) == len(values) else values


def _encode(body: object) -> bytes:
    """JSON on one line. A lone surrogate, which a file name may have, is replaced."""
    try:
        return msgspec.json.encode(body, enc_hook=str)
    except UnicodeEncodeError:
        return msgspec.json.encode(_replaced(msgspec.to_builtins(body, enc_hook=str)))


def _replaced(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, dict):
        return {_replaced(key): _replaced(part) for key, part in value.items()}
    return [_replaced(part) for part in value] if isinstance(value, list | tuple) else value
