"""How many requests an engine has, by its own account: llama.cpp's /slots, vLLM's and SGLang's /metrics.

Sources: https://github.com/ggml-org/llama.cpp/tree/master/tools/server, https://docs.vllm.ai/en/latest/usage/metrics/,
https://docs.sglang.ai/references/production_metrics.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import msgspec

from neuron.agent.config.settings import EngineKind
from neuron.agent.engines.engine_client import EngineCalls

__all__ = ["ReportedLoad", "read_load", "sum_of"]


@dataclass(frozen=True, slots=True)
class ReportedLoad:
    """Requests that an engine works on, and those that wait in it.

    `activity` differs between two readings if the engine has done anything between them.
    """

    in_flight: int
    queued: int = 0
    activity: object = None


_RUNNING = {"vllm": "vllm:num_requests_running", "sglang": "sglang:num_running_reqs"}
_WAITING = {"vllm": "vllm:num_requests_waiting", "sglang": "sglang:num_queue_reqs"}
_PROGRESS = {"vllm": "vllm:generation_tokens_total", "sglang": "sglang:generation_tokens_total"}


class _Slot(msgspec.Struct):
    is_processing: bool = False
    id_task: int = -1


async def read_load(kind: EngineKind, engine: EngineCalls) -> ReportedLoad | None:
    """The engine's load, or None if it does not report it.

    Raises:
        EngineUnreachable: It does not answer.
    """
    if kind == "llamacpp":
        return await _read_slots(engine)
    if kind in _RUNNING:
        return await _read_metrics(kind, engine)
    return None


async def _read_slots(engine: EngineCalls) -> ReportedLoad | None:
    status, body = await engine.get("/slots")
    if status != 200:  # --no-slots
        return None
    try:
        slots = msgspec.json.decode(body, type=list[_Slot])
    except msgspec.DecodeError:
        return None
    status, metrics = await engine.get("/metrics")
    text = metrics.decode("utf-8", "replace") if status == 200 else ""
    activity: Any = ([slot.id_task for slot in slots], sum_of(text, "llamacpp:tokens_predicted_total"))
    queued = int(sum_of(text, "llamacpp:requests_deferred") or 0)
    return ReportedLoad(sum(slot.is_processing for slot in slots), queued, activity)


async def _read_metrics(kind: EngineKind, engine: EngineCalls) -> ReportedLoad | None:
    status, body = await engine.get("/metrics")
    text = body.decode("utf-8", "replace")
    running = sum_of(text, _RUNNING[kind]) if status == 200 else None
    if running is None:
        return None
    waiting = sum_of(text, _WAITING[kind])
    return ReportedLoad(int(running), int(waiting or 0), sum_of(text, _PROGRESS[kind]))


def sum_of(metrics: str, name: str) -> float | None:
    """The sum of a metric over all its labels, in Prometheus' text format; None if there is no sample."""
    samples = re.findall(rf"^{re.escape(name)}(?:\{{[^\n]*\}})?[ \t]+([0-9.eE+-]+)", metrics, re.MULTILINE)
    try:
        return sum(float(sample) for sample in samples) if samples else None
    except ValueError:
        return None
