"""Parts of an answer that whole answers and streams share: the Response object, its items, usage and status.

An id is the answer's id and the item's position, and the same in every event of a stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from gateway.dialects.chat import finish_reasons
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.responses import encrypted_reasoning
from gateway.dialects.responses.client_run_tools import FUNCTIONS, call_fields
from gateway.dialects.responses.tools import ClientTool, custom_input
from gateway.dialects.tool_calls import decode_arguments
from gateway.dialects.usage_fields import Usage

__all__ = [
    "ResponsesContext",
    "Status",
    "add_encrypted_content",
    "call_id",
    "call_item",
    "end_of",
    "message_item",
    "part",
    "reasoning_item",
    "response",
    "usage_of",
]

Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class ResponsesContext:
    """What an answer's translation needs from its request. `request.ResponsesAsChat.context` makes it.

    Args:
        answer_id: The base of the ids of the response, of its items, and of calls to which the neuron gives none.
        model: The model's name if the neuron's answer has none.
        input_tokens: An estimate, for a neuron that reports no usage.
        request_fields: The request's parameters, as the Response repeats them.
        client_tools: The client's tools by the function names that the model knows.
        secret_key: Authenticates the `encrypted_content` of reasoning. Without it there is none.
    """

    answer_id: str
    model: str
    input_tokens: int = 1
    request_fields: Mapping[str, Any] = field(default_factory=dict)
    client_tools: Mapping[str, ClientTool] = field(default_factory=dict)
    secret_key: bytes = field(default=b"", repr=False)

    def client_tool(self, function_name: str, arguments: str | None = None) -> ClientTool:
        """The tool that the model called. A name that was not offered is passed on: the client rejects the call.

        So does a tool without a schema of the client's, if the complete `arguments` are not what it takes.
        """
        tool = self.client_tools.get(function_name) or ClientTool(function_name)
        if arguments is None or tool.kind not in FUNCTIONS or call_fields(tool.kind, arguments) is not None:
            return tool
        return ClientTool(function_name)


def response(context: ResponsesContext, created: object, model: object) -> JsonObject:
    """A Response without output. `created` (unix seconds) and `model` are the neuron's."""
    is_number = isinstance(created, int | float) and not isinstance(created, bool)
    return {
        "id": f"resp_{context.answer_id}",
        "object": "response",
        "created_at": created if is_number else 0,  # dialects have no clock
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "model": model if isinstance(model, str) and model else context.model,
        "output": [],
        "usage": None,
        **context.request_fields,
    }


# Items and parts...


def reasoning_item(context: ResponsesContext, position: int, content: list[JsonObject], status: Status) -> JsonObject:
    """A reasoning item. Open models show their reasoning itself, so it is `content`; there is no `summary`."""
    id_ = f"rs_{context.answer_id}_{position}"
    return {"id": id_, "type": "reasoning", "summary": [], "content": content, "status": status}


def add_encrypted_content(context: ResponsesContext, item: JsonObject) -> None:
    """Give a complete reasoning item the form of its text that every client keeps and sends back."""
    if context.secret_key:
        text = "".join(part["text"] for part in item["content"])
        item["encrypted_content"] = encrypted_reasoning.encode(text, context.secret_key)


def message_item(context: ResponsesContext, position: int, content: list[JsonObject], status: Status) -> JsonObject:
    """A message item with text or a refusal."""
    id_ = f"msg_{context.answer_id}_{position}"
    return {"id": id_, "type": "message", "role": "assistant", "content": content, "status": status}


def part(kind: Literal["reasoning_text", "output_text", "refusal"], text: str) -> JsonObject:
    """One part of an item's content."""
    if kind == "refusal":
        return {"type": kind, "refusal": text}
    if kind == "reasoning_text":
        return {"type": kind, "text": text}
    return {"type": kind, "text": text, "annotations": [], "logprobs": []}


_CALLS = {
    "function": ("function_call", "fc"),
    "custom": ("custom_tool_call", "ctc"),
    "shell": ("shell_call", "sh"),
    "local_shell": ("local_shell_call", "lsh"),
    "apply_patch": ("apply_patch_call", "apc"),
}
"""The type of a call's item and the prefix of its id, by the tool's type."""


def call_item(
    context: ResponsesContext, position: int, tool: ClientTool, call_id: str, arguments: str | None
) -> JsonObject:
    """A call of a tool. `arguments` is None while a call of a function or custom tool is in progress."""
    kind, prefix = _CALLS[tool.kind]
    id_ = f"{prefix}_{context.answer_id}_{position}"
    if tool.kind in FUNCTIONS:
        fields = call_fields(tool.kind, arguments or "") or {}
        return {"id": id_, "type": kind, "call_id": call_id, **fields, "status": "completed"}
    item: JsonObject = {"id": id_, "type": kind, "call_id": call_id, "name": tool.name}
    if tool.namespace:
        item["namespace"] = tool.namespace
    if tool.is_custom:
        item["input"] = custom_input(arguments or "")
    else:
        item["arguments"] = "" if arguments is None else _normalised(arguments)
    return item | {"status": "in_progress" if arguments is None else "completed"}


def call_id(engine_id: str | None, context: ResponsesContext, position: int) -> str:
    """The id of a tool call. If the engine gives none, an id that is unique in the conversation."""
    return engine_id or f"call_{context.answer_id}_{position}"


def _normalised(arguments: str) -> str:
    """Arguments as the model wrote them, but "{}" for none, and decoded once if they are an object encoded twice.

    Arguments that are not an object stay as they are: the client's parser rejects them, and the model sees why.
    """
    if arguments.lstrip().startswith("{"):
        return arguments
    value = decode_arguments(arguments)
    return msgspec.json.encode(value).decode() if isinstance(value, dict) else arguments


# The end...


def end_of(finish_reason: str | None) -> tuple[Literal["completed", "incomplete"], JsonObject | None]:
    """`status` and `incomplete_details` of the answer. Its last item gets the same status."""
    kind = finish_reasons.kind_of(finish_reason)
    if kind == "length":
        return "incomplete", {"reason": "max_output_tokens"}
    if kind == "filtered":
        return "incomplete", {"reason": "content_filter"}
    return "completed", None


def usage_of(usage: Usage | None, input_estimate: int, output_estimate: int, reasoning_estimate: int) -> JsonObject:
    """The `usage` object. The estimates, in tokens, replace counts that the neuron does not report.

    The types of OpenAI's SDKs require numbers.
    """
    usage = usage or Usage()
    prompt = input_estimate if usage.prompt_tokens is None else usage.prompt_tokens
    completion = output_estimate if usage.completion_tokens is None else usage.completion_tokens
    reasoning = min(reasoning_estimate, completion) if usage.reasoning_tokens is None else usage.reasoning_tokens
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens or 0, "cache_write_tokens": 0},
        "output_tokens": completion,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": prompt + completion,
    }
