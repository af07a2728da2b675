"""What whole answers and streams have in common: the Response object, its items and parts, its usage and its end.

Ids are the request's with a place in the answer behind them: unique as long as request ids are, and the same in every
event of a stream and in the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from gateway.dialects.calls import decoded
from gateway.dialects.responses.tools import Callee, custom_input
from gateway.dialects.usage_fields import Usage

__all__ = [
    "Asked",
    "Status",
    "call_id",
    "call_item",
    "end_of",
    "message_item",
    "part",
    "reasoning_item",
    "response",
    "usage_of",
]

Told = dict[str, Any]
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the translation of an answer has to know of its request; made by `request.Translated.asked`.

    Args:
        request_id: Becomes the response's id and its items'.
        model: What to call the model if the neuron does not say.
        input_tokens: An estimate, for where the neuron counts nothing.
        told: The request's parameters, as the Response repeats them.
        callees: The client's tools by the names the model knows.
    """

    request_id: str
    model: str
    input_tokens: int = 1
    told: Mapping[str, Any] = field(default_factory=dict)
    callees: Mapping[str, Callee] = field(default_factory=dict)

    def callee(self, name: str) -> Callee:
        """The tool a model called; one nobody offered is the client's to refuse."""
        return self.callees.get(name) or Callee(name)


def response(asked: Asked, created: object, model: object) -> Told:
    """A Response that has not said anything; `created` and `model` are the neuron's words."""
    is_number = isinstance(created, int | float) and not isinstance(created, bool)
    return {
        "id": f"resp_{asked.request_id}",
        "object": "response",
        "created_at": created if is_number else 0,  # nobody said; we have no clock
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model if isinstance(model, str) and model else asked.model,
        "output": [],
        "usage": None,
        **asked.told,
    }


# Items and parts...


def reasoning_item(asked: Asked, place: int, content: list[Told], status: Status) -> Told:
    """Thoughts. Open models show them as they are, so they are content; a summary is nothing anybody made."""
    id_ = f"rs_{asked.request_id}_{place}"
    return {"id": id_, "type": "reasoning", "summary": [], "content": content, "status": status}


def message_item(asked: Asked, place: int, content: list[Told], status: Status) -> Told:
    """Text, or a refusal."""
    id_ = f"msg_{asked.request_id}_{place}"
    return {"id": id_, "type": "message", "role": "assistant", "content": content, "status": status}


def part(kind: Literal["reasoning_text", "output_text", "refusal"], text: str) -> Told:
    """One part of either."""
    if kind == "refusal":
        return {"type": kind, "refusal": text}
    if kind == "reasoning_text":
        return {"type": kind, "text": text}
    return {"type": kind, "text": text, "annotations": [], "logprobs": []}


def call_item(asked: Asked, place: int, callee: Callee, call_id: str, arguments: str | None) -> Told:
    """A call: of a function with JSON in a string, or of a custom tool with any text. None: it has only begun."""
    kind, prefix = ("custom_tool_call", "ctc") if callee.custom else ("function_call", "fc")
    item: Told = {"id": f"{prefix}_{asked.request_id}_{place}", "type": kind, "call_id": call_id, "name": callee.name}
    if callee.namespace:
        item["namespace"] = callee.namespace
    if callee.custom:
        item["input"] = custom_input(arguments or "")
    else:
        item["arguments"] = "" if arguments is None else _settled(arguments)
    return item | {"status": "in_progress" if arguments is None else "completed"}


def call_id(given: object, request_id: str, position: int) -> str:
    """A call's id; for an engine that gives none, one that is unique in the conversation."""
    return given if isinstance(given, str) and given else f"call_{request_id}_{position}"


def _settled(arguments: str) -> str:
    """Arguments as they are, but that nothing is an empty object and an object encoded twice is one encoded once.

    What is no object at all stays what the model wrote: the client's parser finds it, and the model hears of it.
    """
    if arguments.lstrip().startswith("{"):
        return arguments
    value = decoded(arguments)
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else arguments


# The end...


def end_of(finish_reason: str | None) -> tuple[Literal["completed", "incomplete"], Told | None]:
    """`status` and `incomplete_details`, for the answer and for its last item."""
    if finish_reason == "length":
        return "incomplete", {"reason": "max_output_tokens"}
    if finish_reason == "content_filter":
        return "incomplete", {"reason": "content_filter"}
    return "completed", None


def usage_of(usage: Usage | None, input_estimate: int, output_estimate: int, thought_estimate: int) -> Told:
    """The API's usage; estimates stand in for what the neuron does not say, because its types want numbers."""
    usage = usage or Usage()
    prompt = input_estimate if usage.prompt_tokens is None else usage.prompt_tokens
    completion = output_estimate if usage.completion_tokens is None else usage.completion_tokens
    thought = min(thought_estimate, completion) if usage.reasoning_tokens is None else usage.reasoning_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": thought},
        "total_tokens": prompt + completion,
    }
