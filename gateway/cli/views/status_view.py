"""What `cortex status` prints, from the JSON of `/health`, `/v1/models`, `/admin/fleet` and `/admin/requests`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.cli.live_figures import LiveFigures
from gateway.cli.terminal import table
from gateway.cli.views.fault_text import fault_text
from gateway.cli.views.problems_view import aliases_table, figures_table, problem_lines

__all__ = ["neurons_table", "render", "requests_table"]

REQUESTS_SHOWN = 20


def render(
    state: dict[str, Any], figures: LiveFigures | None = None, figures_error: str | None = None
) -> RenderableType:
    """Everything that is known of a gateway.

    Args:
        state: `health` and `models`; with the admin token also `fleet` and `requests`, or `admin_error`.
        figures: What each neuron did in the last seconds; None unless the status is shown again and again.
        figures_error: Why the figures could not be read.
    """
    health, models, fleet = state["health"], state["models"], state.get("fleet")
    problems = health.get("problems", [])
    parts: list[RenderableType] = [_headline(health), *problem_lines(problems)]
    parts += _refused_file(health["catalogue"], is_a_problem=bool(problems))
    if not problems:
        parts += _audit_error(health.get("audit") or {})
    if figures is not None:
        parts.append(figures_table(figures))
    if figures_error is not None:
        parts.append(Text(f"requests/s, tokens/s and TTFT are not shown: {figures_error}", style="yellow"))
    if "admin_error" in state:
        parts.append(Text(f"devices, leases and requests are not shown: {state['admin_error']}", style="yellow"))
    parts.append(_public_neurons(models, problems) if fleet is None else neurons_table(fleet))
    parts.append(_models(models, () if fleet is None else fleet["nodes"]))
    parts.append(aliases_table(health["aliases"], models) if "aliases" in health else _aliases(models))
    parts.append(_swaps(health.get("swaps", ())))
    if fleet is not None:
        parts.append(_moves(fleet["drains"]))
        parts.append(_loads(fleet["loads"]))
        parts.append(_failed_loads(fleet["failing"]))
        parts.append(_queues(fleet["queue"]))
        parts.append(requests_table(state["requests"], REQUESTS_SHOWN))
    return Group(*[part for part in parts if not isinstance(part, Table) or part.row_count])


# Health ...............................................................................................................

_STYLES = {"ok": "green", "impaired": "yellow", "degraded": "red"}


def _headline(health: Mapping[str, Any]) -> Text:
    catalogue = health["catalogue"]
    text = Text()
    text.append(health["status"], style=f"bold {_STYLES.get(health['status'], '')}")
    nodes = health["nodes"]
    text.append(f"   {nodes['healthy']} of {nodes['total']} neurons healthy")
    if nodes.get("drained"):
        text.append(f", {nodes['drained']} drained")
    text.append(f"   catalogue generation {catalogue['generation']} ({catalogue['path'] or 'none'})")
    return text


def _refused_file(catalogue: Mapping[str, Any], *, is_a_problem: bool) -> list[Text]:
    """The faults of the file on disk. If the file is a problem, the problem's line has the first of them."""
    error = catalogue["error"]
    if error is None:
        return []
    if is_a_problem:
        return [Text(f"  {fault_text(fault, catalogue['path'])}", style="red") for fault in error["faults"][1:]]
    generation = catalogue["generation"]
    text = Text(f"the file on disk is NOT in force; generation {generation} stays in force:", style="bold red")
    for fault in error["faults"]:
        text.append(f"\n  {fault_text(fault, catalogue['path'])}", style="red")
    return [text]


def _audit_error(audit: Mapping[str, Any]) -> list[Text]:
    if audit.get("error") is None:
        return []
    lines = f"{audit['pending']} lines wait to be written" + (f", {audit['lost']} are lost" if audit["lost"] else "")
    return [Text(f"the audit log cannot be written: {audit['error']}; {lines}", style="bold yellow")]


# Neurons, models, aliases .............................................................................................


def neurons_table(fleet: Mapping[str, Any]) -> Table:
    """The neurons of `/admin/fleet`. A row per device; the neuron's own cells are in its first row."""
    drains = {drain["node"]: drain["state"] for drain in fleet["drains"]}
    result = table("neurons", "neuron", "state", "device", "VRAM used / total MB", "power W", "leases", "queued")
    for node in fleet["nodes"]:
        drain = drains.get(node["name"], "open")
        state = _node_state(node) if drain == "open" else f"{_node_state(node)}, {drain}"
        queued = sum(model["queue_depth"] or 0 for model in node["models"])
        for index, device in enumerate(node["devices"] or [None]):
            is_first = index == 0
            used = "-" if device is None or device["vram_used_mb"] is None else str(device["vram_used_mb"])
            total = "-" if device is None else str(device["vram_total_mb"])
            result.add_row(
                node["name"] if is_first else "",
                state if is_first else "",
                "-" if device is None else device["name"],
                f"{used} / {total}",
                "-" if device is None or device.get("power_w") is None else f"{device['power_w']:.0f}",
                str(node["leases"]) if is_first else "",
                str(queued) if is_first else "",
            )
    return result


def _node_state(node: Mapping[str, Any]) -> str:
    if not node["healthy"]:
        return f"down: {node['failure']}" if node.get("failure") else "down"
    left_out = node.get("models_left_out")
    return f"healthy, {left_out} of its models left out" if left_out else "healthy"


def _public_neurons(models: Iterable[Mapping[str, Any]], problems: Iterable[Mapping[str, Any]]) -> Table:
    """The neurons that have a model or a problem. The API does not tell devices, which only operators may see."""
    result = table("neurons", "neuron", "state", "models", "VRAM of models MB")
    places = [place for model in models if model.get("alias_of") is None for place in model["locations"]]
    states: dict[str, list[str]] = {place["node"]: [] for place in places}
    for problem in problems:
        if problem["code"] in _NEURON_STATES:
            states.setdefault(problem["subject"], []).append(_NEURON_STATES[problem["code"]])
    for name, state in sorted(states.items()):
        sizes_mb = [place["vram_estimate_mb"] or 0 for place in places if place["node"] == name]
        result.add_row(name, ", ".join(state) or "healthy", str(len(sizes_mb)), str(sum(sizes_mb)))
    return result


_NEURON_STATES = {"node_down": "down", "node_drained": "drained"}  # by the code of a problem


def _models(models: Iterable[Mapping[str, Any]], nodes: Iterable[Mapping[str, Any]]) -> Table:
    """A row per location. Leases and last use are known only from `nodes`, if there are any."""
    replicas = {(node["name"], replica["id"]): replica for node in nodes for replica in node["models"]}
    admin_columns = ("leases", "last used") if replicas else ()
    result = table("models", "model", "neuron", "state", *admin_columns, "fits on")
    for model in models:
        if model.get("alias_of") is not None:
            continue
        cells = [
            (place["node"], _state(place["status"], replica), *_usage(replica))
            for place in model["locations"]
            for replica in (_find_replica(model["id"], place["node"], replicas),)
        ] or [("-",) * 4]
        for index, place_cells in enumerate(cells):
            name, fits_on = (model["id"], ", ".join(model["feasible_on"]) or "-") if index == 0 else ("", "")
            result.add_row(name, *place_cells[: 2 + len(admin_columns)], fits_on)
    return result


def _state(status: str, replica: Mapping[str, Any] | None) -> str:
    """The status, with how far a load is, or why the model is in this status."""
    progress, reason = (replica or {}).get("progress"), (replica or {}).get("reason")
    if status == "loading" and progress is not None:
        return f"{status} {progress:.0%}"
    return f"{status}: {reason.splitlines()[0]}" if reason else status


def _find_replica(
    model: str, node: str, replicas: Mapping[tuple[str, str], Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The model on that node, where it is called `source:id` if it was loaded from a source."""
    found = (
        replica
        for (name, replica_id), replica in replicas.items()
        if name == node and (replica_id == model or replica_id.endswith(f":{model}"))
    )
    return next(found, None)


def _usage(replica: Mapping[str, Any] | None) -> tuple[str, str]:
    """Leases and last use."""
    if replica is None:
        return "-", "-"
    if replica["idle_s"] is None:
        return str(replica["leases"]), "never"
    return str(replica["leases"]), "now" if replica["leases"] else _ago(replica["idle_s"])


def _ago(elapsed_s: float) -> str:
    for unit_s, name in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if elapsed_s >= 2 * unit_s:
            return f"{elapsed_s // unit_s:.0f} {name} ago"
    return f"{elapsed_s:.0f} s ago"


def _aliases(models: Iterable[Mapping[str, Any]]) -> Table:
    result = table("aliases", "alias", "target", "loaded")
    for model in models:
        if model.get("alias_of") is not None:
            result.add_row(model["id"], model["alias_of"], "yes" if model["loaded"] else "no")
    return result


# Changes under way ....................................................................................................


def _swaps(swaps: Iterable[Mapping[str, Any]]) -> Table:
    result = table("swaps", "alias", "in force", "target in the file", "state", "elapsed", "reason")
    for swap in swaps:
        state = swap["state"] if swap["phase"] is None else f"{swap['state']}: {swap['phase']}"
        elapsed = "-" if swap["elapsed_s"] is None else f"{swap['elapsed_s']:.0f} s"
        result.add_row(swap["alias"], swap["in_force"], swap["wanted"], state, elapsed, swap["reason"] or "-")
    return result


def _moves(drains: Iterable[Mapping[str, Any]]) -> Table:
    result = table("models to move off drained neurons", "from", "model", "state", "to", "reason")
    for drain in drains:
        if drain["state"] != "open" or any(move["state"] == "failed" for move in drain["moves"]):
            for move in drain["moves"]:
                result.add_row(drain["node"], move["model"], move["state"], move["node"] or "-", move["reason"] or "-")
    return result


def _loads(loads: Iterable[Mapping[str, Any]]) -> Table:
    result = table("loading", "model", "neuron", "done", "elapsed", "usual time", "requests waiting")
    for load in loads:
        usual = "-" if load["estimate_s"] is None else f"{load['estimate_s']:.0f} s"
        elapsed = f"{load['elapsed_s']:.0f} s" + (", overdue" if load["overdue"] else "")
        done = "-" if load.get("progress") is None else f"{load['progress']:.0%}"
        done = f"{done}, waking" if load.get("wakes") else done
        result.add_row(load["model"], load["node"], done, elapsed, usual, str(load["waiters"]))
    return result


def _failed_loads(failing: Iterable[Mapping[str, Any]]) -> Table:
    result = table("failed loads", "model", "neuron", "failures in a row", "retried after", "reason")
    for load in failing:
        retry = f"{load['retry_in_s']:.0f} s" if load["retry_in_s"] else "the next request"
        result.add_row(load["model"], load["node"], str(load["failures"]), retry, load["reason"])
    return result


# Requests .............................................................................................................


def _queues(queues: Iterable[Mapping[str, Any]]) -> Table:
    result = table("queues", "model", "limit per neuron", "running", "queued", "longest wait", "waiting for a load")
    for queue in queues:
        limit = "-" if queue["ceiling"] is None else str(queue["ceiling"])
        longest = f"{queue['oldest_s']:.1f} s" if queue["waiting_for_place"] else "-"
        batch = f", {queue['waiting_batch']} batch" if queue.get("waiting_batch") else ""
        counts = f"{queue['waiting_for_place']}{batch}", longest, str(queue["waiting_for_load"])
        result.add_row(queue["model"], limit, str(queue["leases"]), *counts)
    return result


def requests_table(requests: list[dict[str, Any]], limit: int | None = None) -> Table:
    """Running requests first, then queued ones by position; `limit` of them, or all."""
    running = sum(request["state"] == "running" for request in requests)
    title = f"requests: {running} running, {len(requests) - running} waiting"
    has_keys = any(request.get("key") for request in requests)
    result = table(title, "request", "requested", "model", "neuron or state", "elapsed", *(["key"] if has_keys else []))
    for request in sorted(requests, key=lambda request: request["position"] or 0)[:limit]:
        model, elapsed = request["model"] or "-", f"{request['elapsed_s']:.1f} s"
        key = request.get("key")
        keys = [f"{key['name']} ({key['id']})" if key else "-"] if has_keys else []
        result.add_row(request["request_id"], request["alias"] or model, model, _where(request), elapsed, *keys)
    return result


def _where(request: Mapping[str, Any]) -> str:
    match request["state"]:
        case "running":
            return str(request["node"])
        case "queued":
            batch = "as batch, " if request.get("priority") == "batch" else ""
            return f"queued, {batch}position {request['position']}"
        case "loading":
            return "waiting for a load"
        case state:
            return str(state)
