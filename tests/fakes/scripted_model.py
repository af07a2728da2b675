"""A simulated neuron whose models give scripted answers: for agents, which continue a conversation by themselves."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from neuron.simulated import PRESETS, SimDevice, SimNeuron, api, shapes, text
from neuron.simulated.http import SimExchange
from neuron.simulated.inference import Job, generate

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Call:
    """The model calls this tool."""

    name: str
    arguments: dict[str, Any]


Line = str | Call
Script = Callable[[dict[str, Any]], Line]
"""The answer to a chat request, given as its JSON."""


class ScriptedNeuron(SimNeuron):
    """With everything else that a simulated neuron has, faults included."""

    def __init__(self, *loaded: str, script: Script) -> None:
        super().__init__("beast", [SimDevice(0, "GPU", 49152)], PRESETS.values(), loaded=loaded, speed=1000.0)
        self.script = script

    @property
    def chat_requests(self) -> list[dict[str, Any]]:
        """Every chat request so far."""
        return [json.loads(request.body) for request in self.requests if request.path == CHAT]

    async def _handle(self, exchange: SimExchange) -> None:
        self.start()
        await api.handle(self, exchange, {**api.INFERENCE, CHAT: self._answer})

    async def _answer(self, job: Job) -> None:
        body = job.exchange.request.body
        generation = shapes.chat(job.model, body)
        line = self.script(json.loads(body))
        called = isinstance(line, Call)
        deltas = _call_deltas(line, generation.id) if called else [{"content": token} for token in text.tokens(line)]
        finish_reason = "tool_calls" if called else "stop"
        await generate(job, dataclasses.replace(generation, deltas=tuple(deltas), finish_reason=finish_reason))


def _call_deltas(call: Call, generation_id: str) -> list[dict[str, Any]]:
    """The call's beginning, then its arguments in pieces."""
    head = {"index": 0, "id": f"call_{generation_id[-12:]}", "type": "function"}
    opening = {**head, "function": {"name": call.name, "arguments": ""}}
    pieces = [{"index": 0, "function": {"arguments": token}} for token in text.tokens(json.dumps(call.arguments))]
    return [{"tool_calls": [one]} for one in (opening, *pieces)]
