"""The simulated neuron's routes: management, inference, and `/sim`, which injects faults."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import msgspec
import trio

from neuron.simulated import faults, inference, media, sleeping
from neuron.simulated.hardware import SimModel
from neuron.simulated.http import SimExchange
from neuron.simulated.state import Cancelled, NeuronState, Residency, Resident, SimRefusal

INFERENCE = {**inference.ENDPOINTS, **media.ENDPOINTS}
_VERSION = "0.1.0-sim"
_IDLE_TEMP_C = 38
_BUSY_TEMP_C = 67
_IDLE_POWER_W = 20
_BUSY_POWER_W = 280

Json = Any
T = TypeVar("T")


async def handle(
    state: NeuronState, exchange: SimExchange, endpoints: Mapping[str, inference.Endpoint] = INFERENCE
) -> None:
    """Answer one request; `endpoints` maps inference paths to handlers.

    Raises:
        HangUp: The connection must be closed now.
    """
    path = exchange.request.path
    try:
        if not path.startswith("/sim/"):
            await _inject_faults(state, path)
        answer = endpoints.get(path)
        if answer is not None:
            _expect(exchange, "POST")
            await inference.infer(state, exchange, answer, is_form=path in media.FORMS)
        else:
            await exchange.respond_json(200, await _manage(state, exchange))
    except SimRefusal as refusal:
        headers = [] if refusal.retry_after_s is None else [("retry-after", str(refusal.retry_after_s))]
        code = {} if refusal.code is None else {"code": refusal.code}
        await exchange.respond_json(refusal.status, {"error": refusal.text, **code}, headers)


async def _inject_faults(state: NeuronState, path: str) -> None:
    if state.faults.take(faults.Unresponsive):
        await trio.sleep_forever()
    failing = state.faults.peek(faults.EndpointFails)
    if failing is not None and failing.path == path:
        state.faults.take(faults.EndpointFails)
        raise SimRefusal(failing.status, failing.text)


async def _manage(state: NeuronState, exchange: SimExchange) -> Json:
    path = exchange.request.path
    if path == "/models/load":  # it takes time, as the next one
        _expect(exchange, "POST")
        await load(state, exchange, _read(LoadRequest, exchange))
        return {"status": "loaded"}
    if path == "/models/wake":
        _expect(exchange, "POST")
        return await _wake(state, exchange)
    if path.startswith("/models/") and path.count("/") == 3:
        return _model_route(state, exchange)
    route = _ROUTES.get(path)
    if route is None:
        raise SimRefusal(404, f"no such path: {path}")
    answers = route.get("GET" if exchange.request.method == "HEAD" else exchange.request.method)
    if answers is None:
        raise SimRefusal(405, f"{path} takes {', '.join(route)}")
    return answers(state, exchange)


def _expect(exchange: SimExchange, method: str) -> None:
    if exchange.request.method != method:
        raise SimRefusal(405, f"{exchange.request.path} takes {method}")


# ---- discovery and health


def _discovery(state: NeuronState, _: SimExchange) -> Json:
    discovery = {
        "hostname": state.name,
        "os": "Linux (simulated)",
        "kernel": "6.12.0-sim",
        "cuda_version": "12.8",
        "driver_version": "570.86.10",
        "devices": [dataclasses.asdict(device) for device in state.devices],
        "harnesses": sorted({model.harness for model in state.models.values()}),
    }
    return discovery if state.max_prompt_tokens is None else {**discovery, "max_prompt_tokens": state.max_prompt_tokens}


def _health(state: NeuronState, _: SimExchange) -> Json:
    activation = state.activation
    return {
        "uptime_secs": int(trio.current_time() - (state.started_at or 0.0)),
        "devices": [_device_health(state, device.index) for device in state.devices],
        "activation": {
            "state": activation.state,
            "pending": activation.pending,
            "in_progress": activation.in_progress,
            "completed": activation.completed,
            "failed": [{"model_id": model_id, "error": error} for model_id, error in activation.failed],
        },
        "models": [_model_health(resident) for resident in state.residents.values() if _is_loaded(resident)],
    }


def _device_health(state: NeuronState, index: int) -> Json:
    busy = any(resident.places.in_flight and index in resident.devices for resident in state.residents.values())
    return {
        "index": index,
        "vram_used_mb": state.vram_used_mb(index),
        "vram_free_mb": state.vram_free_mb(index),
        "utilization_pct": 97 if busy else 0,
        "temp_c": _BUSY_TEMP_C if busy else _IDLE_TEMP_C,
        "power_w": _BUSY_POWER_W if busy else _IDLE_POWER_W,
    }


def _model_health(resident: Resident) -> Json:
    model, places = resident.model, resident.places
    return {
        "id": model.id,
        "in_flight": places.in_flight,
        "queue_depth": places.queue_depth,
        "max_in_flight": model.max_in_flight,
        "max_queue_depth": model.max_queue_depth,
        "tok_s_prefill": model.prefill_tok_s,
        "tok_s_decode": model.decode_tok_s,
        "rejected_queue_full": places.rejected_queue_full,
        "rejected_timeout": 0,
    }


def _is_loaded(resident: Resident) -> bool:
    return resident.residency is Residency.LOADED


def _version(state: NeuronState, _: SimExchange) -> Json:
    return {"version": _VERSION, "name": state.name}


# ---- models


def _models(state: NeuronState, _: SimExchange) -> Json:
    return [_model_entry(state, resident) for resident in state.residents.values()]


def _model_entry(state: NeuronState, resident: Resident) -> Json:
    model = resident.model
    reported = state.faults.peek(faults.ReportStatus, model.id)
    unservable = state.faults.peek(faults.Unservable, model.id)
    gone = resident.residency is Residency.UNLOADED
    entry = {
        "id": model.id,
        "harness": resident.harness,
        "status": reported.status if reported else resident.residency.value,
        "devices": [] if gone else list(resident.devices),
        "vram_used_mb": resident.vram_used_mb,
        **_abilities(model),
    }
    if resident.residency is Residency.ASLEEP:
        entry |= {"asleep_level": resident.asleep_level, "reason": resident.reason}
    if resident.residency is Residency.LOADING and resident.progress_of is not None:
        entry["progress"] = round(resident.progress_of(), 3)
    if unservable is not None:
        entry["servable"] = {"ok": False, "reason": unservable.reason, "detail": unservable.detail}
    return entry


def _abilities(model: SimModel) -> dict[str, Json]:
    return {
        "capabilities": list(model.capabilities),
        "limit": {"context": model.context, "output": model.output},
        "tool_call": model.tool_call,
        "reasoning": model.reasoning,
    }


def _model_route(state: NeuronState, exchange: SimExchange) -> Json:
    """`/models/{id}/endpoint` and `/capabilities`, where the id is one percent-encoded segment."""
    _expect(exchange, "GET")
    _, _, quoted, what = exchange.request.path.split("/")
    model_id = unquote(quoted)
    resident = state.loaded(model_id)
    if resident is None:
        raise SimRefusal(404, f"model '{model_id}' not loaded")
    if what == "endpoint":
        return {"url": f"http://localhost:{state.port}"}
    if what == "capabilities":
        return {"id": model_id, **_abilities(resident.model)}
    raise SimRefusal(404, f"no such path: {exchange.request.path}")


class LoadRequest(msgspec.Struct):
    """`POST /models/load`."""

    model_id: str
    harness: str | None = None
    quant: str | None = None
    tensor_parallel: int | None = None
    devices: list[int] | None = None


class UnloadRequest(msgspec.Struct):
    """`POST /models/unload`."""

    model_id: str
    force: bool = False


class SleepRequest(msgspec.Struct):
    """`POST /models/sleep`."""

    model_id: str
    level: int | None = None


class WakeRequest(msgspec.Struct):
    """`POST /models/wake`."""

    model_id: str


async def load(state: NeuronState, exchange: SimExchange | None, request: LoadRequest) -> None:
    """Load a model, or wake it, and return when its weights are resident; VRAM is taken from the start.

    A client (of `exchange`) that disconnects meanwhile aborts the load, unless `load_survives_client`.

    Raises:
        Refusal: 400, with the reason.
    """
    if exchange is not None:
        exchange.goes_on_alone = state.load_survives_client
    model_id = state.model_named(request.model_id).id
    sleeper = state.residents.get(model_id)
    if sleeper is not None and sleeper.residency is Residency.ASLEEP:
        sleeping.begin_wake(state, sleeper)
        resident = sleeper
    else:
        resident = state.begin_load(request.model_id, request.harness, request.tensor_parallel, request.devices)
    outcome: str | None = "aborted"
    try:
        outcome = await _read_weights(state, resident)
    finally:
        if outcome == "aborted":
            _note_departure(state, exchange, resident.model.id)
        state.end_load(resident, outcome)
    if outcome is not None:
        raise SimRefusal(400, outcome)


async def _read_weights(state: NeuronState, resident: Resident) -> str | None:
    """Wait for as long as a load or a wake takes; return why it failed, or None."""
    model = resident.model
    fails = state.faults.take(faults.LoadFails, model.id)
    hangs = state.faults.take(faults.LoadHangs, model.id)
    if hangs is not None and hangs.seconds is None:
        await trio.sleep_forever()
    extra_s = hangs.seconds or 0.0 if hangs is not None else 0.0
    usual_s = model.wake_seconds if resident.asleep_level else model.load_seconds
    takes_s = (fails.seconds if fails else usual_s) + extra_s
    begun_at = trio.current_time()
    resident.progress_of = lambda: _fraction(trio.current_time() - begun_at, state.real_s(takes_s))
    await state.sleep_until(lambda: begun_at + state.real_s(takes_s))
    return fails.text if fails else None


def _note_departure(state: NeuronState, exchange: SimExchange | None, model_id: str) -> None:
    if exchange is not None and exchange.client_left_at is not None:
        state.counters["cancelled"] += 1
        state.cancelled.append(Cancelled(exchange.client_left_at, model_id, "loading", False, None))


def _fraction(elapsed_s: float, takes_s: float) -> float:
    return 1.0 if takes_s <= 0 else min(elapsed_s / takes_s, 1.0)


def _unload(state: NeuronState, exchange: SimExchange) -> Json:
    request = _read(UnloadRequest, exchange)
    resident = state.residents.get(request.model_id) or state.residents.get(request.model_id.partition(":")[2])
    if resident is not None and not request.force and sleeping.may_sleep_now(state, resident):
        sleeping.fall_asleep(state, resident, resident.model.sleep, "its memory was wanted")
    else:
        state.unload(request.model_id)
    return {"status": "unloaded"}


def _sleep(state: NeuronState, exchange: SimExchange) -> Json:
    request = _read(SleepRequest, exchange)
    sleeping.put_to_sleep(state, request.model_id, request.level)
    return {"status": "asleep"}


async def _wake(state: NeuronState, exchange: SimExchange) -> Json:
    resident = sleeping.sleeper_named(state, _read(WakeRequest, exchange).model_id)
    if resident.residency is Residency.ASLEEP:
        await load(state, exchange, LoadRequest(resident.model.id))
    return {"status": "loaded"}


def _openai_models(state: NeuronState, _: SimExchange) -> Json:
    data = [
        {"id": model_id, "object": "model", "created": 0, "owned_by": state.name}
        for model_id, resident in state.residents.items()
        if _is_loaded(resident)
    ]
    return {"object": "list", "data": data}


def _read(kind: type[T], exchange: SimExchange) -> T:
    try:
        return msgspec.json.decode(exchange.request.body, type=kind)
    except msgspec.MsgspecError as fault:
        raise SimRefusal(400, f"invalid request: {fault}") from None


# ---- fault injection


def _add_fault(state: NeuronState, exchange: SimExchange) -> Json:
    try:
        state.faults.add(faults.parse(exchange.request.body))
    except msgspec.MsgspecError as fault:
        raise SimRefusal(400, f"invalid fault: {fault}") from None
    return state.faults.in_force()


def _clear_faults(state: NeuronState, _: SimExchange) -> Json:
    state.faults.clear()
    return state.faults.in_force()


def _faults(state: NeuronState, _: SimExchange) -> Json:
    return state.faults.in_force()


def _sim_state(state: NeuronState, _: SimExchange) -> Json:
    return snapshot(state)


def _reset(state: NeuronState, _: SimExchange) -> Json:
    state.reset()
    return snapshot(state)


def snapshot(state: NeuronState) -> dict[str, Json]:
    """The body of `GET /sim/state`: counters, requests in flight, logs, violations. Bodies appear as hashes only."""
    return {
        "name": state.name,
        "now": trio.current_time(),
        "speed": state.speed,
        "counters": dict(state.counters),
        "in_flight": {model_id: resident.places.in_flight for model_id, resident in state.residents.items()},
        "queue_depth": {model_id: resident.places.queue_depth for model_id, resident in state.residents.items()},
        "violations": state.violations,
        "faults": state.faults.in_force(),
        "cancelled": [dataclasses.asdict(entry) for entry in state.cancelled],
        "loads": [dataclasses.asdict(entry) for entry in state.loads],
        "requests": [
            {name: value for name, value in dataclasses.asdict(entry).items() if name != "body"}
            for entry in state.requests
        ],
    }


_ROUTES: dict[str, dict[str, Callable[[NeuronState, SimExchange], Json]]] = {
    "/discovery": {"GET": _discovery},
    "/health": {"GET": _health},
    "/version": {"GET": _version},
    "/models": {"GET": _models},
    "/models/unload": {"POST": _unload},
    "/models/sleep": {"POST": _sleep},
    "/v1/models": {"GET": _openai_models},
    "/sim/faults": {"GET": _faults, "POST": _add_fault, "DELETE": _clear_faults},
    "/sim/state": {"GET": _sim_state},
    "/sim/reset": {"POST": _reset},
}
