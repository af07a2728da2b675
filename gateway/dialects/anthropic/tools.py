"""Which tools a Messages request offers to the model, as chat completions parameters.

Tools that the client runs become functions, also those without a schema (`client_run_tools`). Tools that Anthropic runs
on its servers do not exist here: beside other tools they are left out; alone, or if `tool_choice` demands one, the
request is rejected, because leaving the tool out would answer another question.

A tool with `defer_loading` is not offered until the conversation loads it: a client's own search returned it, or a
system turn added it. Loaded tools are appended in the order in which they were loaded. The chat template's text for the
earlier tools then stays the same, so the neuron's prefix cache remains valid. (Anthropic's servers write such tools
into the turn itself; most engines let a model call only what is in `tools`.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from gateway.dialects.anthropic import request_types
from gateway.dialects.anthropic.client_run_tools import client_run_tool
from gateway.dialects.anthropic.request_types import (
    MessagesContent,
    MessagesRequest,
    MessagesTool,
    MessagesToolChoice,
)
from gateway.dialects.fields import decode_field, invalid
from gateway.dialects.loose_json import JsonObject, is_object

__all__ = ["ToolChange", "ignored_tools", "tool_changes", "tool_parameters"]


def tool_parameters(request: MessagesRequest) -> JsonObject:
    """`tools`, `tool_choice` and `parallel_tool_calls`. Empty without tools: OpenAI rejects an empty list.

    Raises:
        BadRequest: `tool_choice` names an unknown tool or has an unknown type, or Anthropic's servers run all tools.
    """
    functions = [_function(name, tool) for name, tool in _offered(request).items()]
    choice = MessagesToolChoice(request.tool_choice) if isinstance(request.tool_choice, str) else request.tool_choice
    if not functions:
        _reject_without_functions(request, choice)
        return {}
    parameters: JsonObject = {"tools": functions}
    if choice is not None:
        if choice.type == "tool":
            _reject_choice_of_servers_tool(request, choice)
        parameters["tool_choice"] = _tool_choice(choice, {tool["function"]["name"] for tool in functions})
        if choice.disable_parallel_tool_use is True:
            parameters["parallel_tool_calls"] = False
    return parameters


def ignored_tools(request: MessagesRequest) -> list[str]:
    """The types of the tools that are left out because Anthropic's servers run them."""
    return [f"tools.{tool.type}" for tool in request.tools or () if _runs_on_servers(tool)]


def _reject_without_functions(request: MessagesRequest, choice: MessagesToolChoice | None) -> None:
    tools = request.tools or []
    if tools and all(map(_runs_on_servers, tools)):
        raise invalid("tools.0.type", f"`{tools[0].type}` {_ON_SERVERS}: offer a tool with an `input_schema` instead")
    if choice is not None and choice.type in {"any", "tool"}:
        raise invalid("tool_choice", "must be `auto` or `none` if there are no tools")


def _reject_choice_of_servers_tool(request: MessagesRequest, choice: MessagesToolChoice) -> None:
    for tool in request.tools or ():
        if tool.name == choice.name and _runs_on_servers(tool):
            raise invalid("tool_choice.name", f"`{tool.type}` {_ON_SERVERS}: choose another tool")


_ON_SERVERS = "runs only on Anthropic's servers"


# Which tools are offered...


@dataclass(frozen=True, slots=True)
class ToolChange:
    """A tool that is added or removed within a conversation. `definition` is set if the tool is not in `tools`."""

    name: str
    added: bool
    definition: MessagesTool | None = None


def tool_changes(content: MessagesContent, path: str) -> Iterator[ToolChange]:
    """The changes in a system turn's content."""
    for block_path, block in request_types.blocks_of(content, path):
        if block.type in {"tool_addition", "tool_removal"} and is_object(block.tool):
            tool = decode_field(request_types.tool_change_decoder, block.tool, f"{block_path}.tool")
            name = tool.name if tool.definition is None else tool.definition.name
            if name is not None:
                yield ToolChange(name, block.type == "tool_addition", tool.definition)


def _offered(request: MessagesRequest) -> dict[str, MessagesTool]:
    """The tools that the model gets, by name, in order."""
    tools = request.tools or []
    listed = {
        tool.name or _default_name(tool, index): tool for index, tool in enumerate(tools) if not _runs_on_servers(tool)
    }
    # Anthropic's servers search deferred tools with a tool of theirs. Without it, the model can only get all of them.
    is_searched_by_server = any(tool.type and tool.type.startswith("tool_search_tool") for tool in tools)
    offered = {name: tool for name, tool in listed.items() if is_searched_by_server or tool.defer_loading is not True}
    for change in _changes_in_conversation(request):
        tool = change.definition or listed.get(change.name)
        if not change.added:
            offered.pop(change.name, None)
        elif tool is not None and not _runs_on_servers(tool):
            offered.setdefault(change.name, tool)
    return offered


def _changes_in_conversation(request: MessagesRequest) -> Iterator[ToolChange]:
    """In the order of the conversation, then the tool that `tool_choice` names."""
    for index, turn in enumerate(request.messages):
        path = f"messages.{index}.content"
        if turn.role in {"system", "developer"}:
            yield from tool_changes(turn.content, path)
            continue
        for block_path, block in request_types.blocks_of(turn.content, path):
            if block.type == "tool_result" and b"tool_reference" in bytes(block.content):
                yield from _search_results(block.content, f"{block_path}.content")
    if isinstance(request.tool_choice, MessagesToolChoice) and request.tool_choice.name is not None:
        yield ToolChange(request.tool_choice.name, added=True)


def _search_results(content: msgspec.Raw, path: str) -> Iterator[ToolChange]:
    for _, block in request_types.nested_blocks(content, path):
        if block.type == "tool_reference" and isinstance(block.tool_name, str):
            yield ToolChange(block.tool_name, added=True)


# How they are written...


def _runs_on_servers(tool: MessagesTool) -> bool:
    """A type without a schema that no client is known to run (`web_search_20250305`, `mcp_toolset`)."""
    if tool.type in _CUSTOM or is_object(tool.input_schema):
        return False
    return client_run_tool(tool.type, {}) is None


_CUSTOM = frozenset({None, "custom"})


def _default_name(tool: MessagesTool, index: int) -> str:
    known = client_run_tool(tool.type, {})
    if known is None:
        raise invalid(f"tools.{index}.name", "is missing")
    return str(known["name"])


def _function(name: str, tool: MessagesTool) -> JsonObject:
    is_custom = tool.type in _CUSTOM or is_object(tool.input_schema)
    known = None if is_custom else client_run_tool(tool.type, msgspec.structs.asdict(tool))
    if known is not None:
        return {"type": "function", "function": {**known, "name": name}}
    function: JsonObject = {"name": name}
    description = _description(tool)
    if description is not None:
        function["description"] = description
    # The client's bytes: a schema's order of properties is part of the prompt.
    no_parameters = {"type": "object", "properties": {}}
    function["parameters"] = tool.input_schema if is_object(tool.input_schema) else no_parameters
    if tool.strict is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _description(tool: MessagesTool) -> str | None:
    """With the examples of input, which chat completions has no field for."""
    text = tool.description if isinstance(tool.description, str) else None
    if not isinstance(tool.input_examples, list) or not tool.input_examples:
        return text
    examples = "\n".join(msgspec.json.encode(example).decode() for example in tool.input_examples)
    return f"{text or ''}\n\nExamples of input:\n{examples}".lstrip()


def _tool_choice(choice: MessagesToolChoice, names: set[str]) -> str | JsonObject:
    match choice.type:
        case "auto" | "none":
            return choice.type
        case "any":
            return "required"
        case "tool":
            if choice.name not in names:
                raise invalid("tool_choice.name", f"`{choice.name}` is not the name of a tool in `tools`")
            return {"type": "function", "function": {"name": choice.name}}
    raise invalid("tool_choice.type", f"must be `auto`, `any`, `tool` or `none`, not `{choice.type}`")
