"""Which tools a model is offered, and how it may choose. Pure; what is said of them in the turns is `request`'s.

A tool with `defer_loading` is not offered until the conversation brings it in: a search of the client's has found it,
or a system turn has added it. Those stand behind the others, in the order in which they came: what a template writes of
the tools so far stays as it was, for the neuron's prefix cache. (Anthropic's servers write them into the turn itself;
most engines let a model call only what is among `tools`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.dialects.anthropic import incoming
from gateway.dialects.anthropic.incoming import Content, Request, Tool, ToolChoice
from gateway.dialects.validate import read, refusal

__all__ = ["Change", "changes", "is_object", "parameters"]

Outgoing = dict[str, Any]


def parameters(request: Request) -> Outgoing:
    """`tools` and what belongs to it. An empty list is left out: OpenAI refuses it, and a choice without tools too."""
    offered = [_function(tool) for tool in _offered(request) if _is_ours_to_offer(tool)]
    if not offered:
        return {}
    choice = ToolChoice(request.tool_choice) if isinstance(request.tool_choice, str) else request.tool_choice
    found: Outgoing = {"tools": offered}
    if choice is not None:
        found["tool_choice"] = _tool_choice(choice, {tool["function"]["name"] for tool in offered})
        if choice.disable_parallel_tool_use is True:
            found["parallel_tool_calls"] = False
    return found


# Which...


@dataclass(frozen=True, slots=True)
class Change:
    """A tool comes or goes in the middle of a conversation; one that `tools` does not have brings its definition."""

    name: str
    added: bool
    definition: Tool | None = None


def changes(content: Content, path: str) -> Iterator[Change]:
    """What a system turn changes."""
    for place, block in incoming.blocks(content, path):
        if block.type in {"tool_addition", "tool_removal"} and is_object(block.tool):
            tool = read(incoming.changed_tool_decoder, block.tool, f"{place}.tool")
            name = tool.name if tool.definition is None else tool.definition.name
            if name is not None:
                yield Change(name, block.type == "tool_addition", tool.definition)


def _offered(request: Request) -> list[Tool]:
    listed = {tool.name: tool for tool in request.tools or ()}
    all_of_them = _is_searched_by_the_server(listed)
    present = {name: tool for name, tool in listed.items() if all_of_them or tool.defer_loading is not True}
    for change in _brought_in(request):
        tool = change.definition or listed.get(change.name)
        if not change.added:
            present.pop(change.name, None)
        elif tool is not None:
            present.setdefault(change.name, tool)
    return list(present.values())


def _is_searched_by_the_server(listed: dict[str, Tool]) -> bool:
    """By Anthropic's, with a tool of theirs. Nobody here does that: then all have to be offered."""
    return any(tool.type is not None and tool.type.startswith("tool_search_tool") for tool in listed.values())


def _brought_in(request: Request) -> Iterator[Change]:
    """In the order of the conversation; last the one that `tool_choice` names."""
    for index, message in enumerate(request.messages):
        path = f"messages.{index}.content"
        if message.role in {"system", "developer"}:
            yield from changes(message.content, path)
            continue
        for place, block in incoming.blocks(message.content, path):
            if block.type == "tool_result" and b"tool_reference" in bytes(block.content):
                yield from _found(block.content, f"{place}.content")
    if isinstance(request.tool_choice, ToolChoice) and request.tool_choice.name is not None:
        yield Change(request.tool_choice.name, added=True)


def _found(content: msgspec.Raw, path: str) -> Iterator[Change]:
    for _, block in incoming.nested(content, path):
        if block.type == "tool_reference" and isinstance(block.tool_name, str):
            yield Change(block.tool_name, added=True)


# How...


def _is_ours_to_offer(tool: Tool) -> bool:
    """Anthropic's own tools (`web_search_20250305`) come without a schema: nobody here could run or describe them."""
    return is_object(tool.input_schema) or tool.type in {None, "custom"}


def is_object(value: msgspec.Raw) -> bool:
    """Whether a piece of JSON is one."""
    return bytes(value).startswith(b"{")


def _function(tool: Tool) -> Outgoing:
    function: Outgoing = {"name": tool.name}
    if isinstance(tool.description, str):
        function["description"] = tool.description
    # As the client wrote it: a schema's order of properties is part of the prompt.
    no_parameters = {"type": "object", "properties": {}}
    function["parameters"] = tool.input_schema if is_object(tool.input_schema) else no_parameters
    if tool.strict is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _tool_choice(choice: ToolChoice, names: set[str]) -> str | Outgoing:
    match choice.type:
        case "auto" | "none":
            return choice.type
        case "any":
            return "required"
        case "tool":
            if choice.name not in names:
                raise refusal("tool_choice.name", f"no tool of that name is among `tools`: {choice.name}")
            return {"type": "function", "function": {"name": choice.name}}
    raise refusal("tool_choice.type", f"must be `auto`, `any`, `tool` or `none`, not `{choice.type}`")
