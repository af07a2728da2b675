"""The tools of a Responses request as functions of chat completions, and the client's tool behind each function.

Tools that the client runs become functions: a function stays one, a custom tool becomes a function with one string
parameter, a tool in a namespace gets the namespace's name as a prefix, and `apply_patch`, `shell` and `local_shell` get
schemas of our own (`client_run_tools`).

Tools that OpenAI runs on its servers (`web_search`, `code_interpreter`, `mcp`, ...) do not exist here. If the request
has other tools, these are left out: agents offer them by default, a model is free not to call one, and the answer's
`tools` lists what was offered. If the request has nothing else, or its `tool_choice` demands one, it is rejected:
leaving the tool out would answer another question.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import msgspec

from gateway.dialects.fields import invalid
from gateway.dialects.loose_json import JsonObject
from gateway.dialects.responses import client_run_tools, request_types
from gateway.dialects.responses.request_types import ResponsesRequest, ResponsesTool, ResponsesToolChoice
from gateway.dialects.tool_calls import decode_arguments

__all__ = ["ClientTool", "OfferedTools", "custom_arguments", "custom_input", "function_name", "offered_tools"]


@dataclass(frozen=True, slots=True)
class ClientTool:
    """A tool under the client's own name.

    `kind` is the tool's type: `function`, `custom`, or one of `client_run_tools.FUNCTIONS`.
    """

    name: str
    namespace: str | None = None
    kind: str = "function"

    @property
    def is_custom(self) -> bool:
        """Whether its input is a text, not an object."""
        return self.kind == "custom"


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """The tools that a model is offered.

    Args:
        functions: `tools` for chat completions.
        choice: `tool_choice` for chat completions, or None.
        repeated: `tools` as the answer repeats them to the client.
        client_tools: The client's tools by function name.
        ignored: The types of the tools that are left out because OpenAI's servers run them.
    """

    functions: list[JsonObject]
    choice: str | JsonObject | None
    repeated: list[JsonObject]
    client_tools: Mapping[str, ClientTool]
    ignored: tuple[str, ...] = ()


def offered_tools(request: ResponsesRequest) -> OfferedTools:
    """Translate `tools` and `tool_choice`.

    Raises:
        BadRequest: A tool or the choice cannot be offered; the message and `param` name it.
    """
    functions: list[JsonObject] = []
    repeated: list[JsonObject] = []
    client_tools: dict[str, ClientTool] = {}
    hosted: list[tuple[str, str]] = []  # path and type of tools that OpenAI runs
    for index, tool in enumerate(request.tools or ()):
        path = f"tools.{index}"
        if tool.type in _NOT_OFFERED:
            raise invalid(f"{path}.type", f"`{tool.type}` cannot be offered to this model: offer functions instead")
        if tool.type not in _CALLABLE or _runs_in_container(tool):
            hosted.append((f"{path}.type", tool.type))
            continue
        for inner_path, inner, client_tool in _callable_tools(tool, path):
            name = function_name(client_tool.name, client_tool.namespace)
            if name in client_tools:
                raise invalid(f"{inner_path}.name", f"`{name}` is the name of another tool too: rename one of them")
            client_tools[name] = client_tool
            functions.append(_function(inner, name, inner_path))
        repeated.append(_repeated(tool, path))
    if hosted and not functions:
        path, type_ = hosted[0]
        raise invalid(path, f"`{type_}` runs only on OpenAI's servers: offer a function instead")
    ignored = tuple(f"tools.{type_}" for _, type_ in hosted)
    return _with_choice(request.tool_choice, OfferedTools(functions, None, repeated, client_tools, ignored))


_CALLABLE = frozenset({"function", "custom", "namespace", *client_run_tools.FUNCTIONS})
_NOT_OFFERED = frozenset({"computer", "computer_use", "computer_use_preview"})
"""The client runs these too, so leaving one out would be wrong; but their calls have no form that engines can write."""


def _runs_in_container(tool: ResponsesTool) -> bool:
    """A `shell` runs where its `environment` says: at the client, or in a container of OpenAI's."""
    if tool.type != "shell" or not isinstance(tool.environment, dict):
        return False
    return str(tool.environment.get("type", "")).startswith("container")


def function_name(name: str, namespace: str | None) -> str:
    """The name under which a model knows a tool.

    OpenAI gives a function outside of any namespace its own name as its namespace.
    """
    return f"{namespace.rstrip('_')}__{name}" if namespace and namespace != name else name


def custom_arguments(text: str) -> str:
    """The function arguments that stand for a custom tool's input."""
    return msgspec.json.encode({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """The custom tool's input in a function's arguments. Arguments of any other form are the input as they are."""
    value = decode_arguments(arguments)
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


# Functions...


def _callable_tools(tool: ResponsesTool, path: str) -> Iterator[tuple[str, ResponsesTool, ClientTool]]:
    """The tool itself, or the tools of a namespace, each with its path."""
    if tool.type != "namespace":
        yield path, tool, ClientTool(_name(tool, path), kind=tool.type)
        return
    namespace = _name(tool, path)
    for index, inner in enumerate(_inner_tools(tool, path)):
        inner_path = f"{path}.tools.{index}"
        if inner.type not in {"function", "custom"}:
            raise invalid(f"{inner_path}.type", f"must be `function` or `custom` in a namespace, not `{inner.type}`")
        yield inner_path, inner, ClientTool(_name(inner, inner_path), namespace, inner.type)


def _inner_tools(tool: ResponsesTool, path: str) -> list[ResponsesTool]:
    return request_types.tools_in(tool.tools, f"{path}.tools")


def _name(tool: ResponsesTool, path: str) -> str:
    if tool.type in client_run_tools.FUNCTIONS:
        return tool.type
    name = tool.name or (tool.function.name if tool.function else None)
    if not name:
        raise invalid(f"{path}.name", "is missing")
    return name


def _function(tool: ResponsesTool, name: str, path: str) -> JsonObject:
    if tool.type in client_run_tools.FUNCTIONS:
        return {"type": "function", "function": client_run_tools.FUNCTIONS[tool.type]}
    function: JsonObject = {"name": name}
    if description := _description(tool):
        function["description"] = description
    function["parameters"] = _CUSTOM_PARAMETERS if tool.type == "custom" else _parameters(tool, path)
    if tool.type == "function" and (tool.function or tool).strict is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _description(tool: ResponsesTool) -> str:
    description = (tool.function or tool).description
    text = description if isinstance(description, str) else ""
    match tool.format:
        case {"type": "grammar", "syntax": str(syntax), "definition": str(definition)}:
            return f"{text}\n\nThe input has to follow this {syntax} grammar:\n{definition}".lstrip()
    return text


def _parameters(tool: ResponsesTool, path: str) -> msgspec.Raw | JsonObject:
    """The schema in the client's bytes: its order of properties is part of the prompt."""
    schema = (tool.function or tool).parameters
    text = bytes(schema)
    if text.startswith(b"{"):
        return schema
    if text in {b"", b"null"}:
        return {"type": "object", "properties": {}}
    raise invalid(f"{path}.parameters", "must be an object")


_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def _repeated(tool: ResponsesTool, path: str) -> JsonObject:
    """The tool in the API's own form, whichever form the client used, with the fields that the SDK's types require."""
    if tool.type in client_run_tools.FUNCTIONS:
        return {"type": tool.type} if tool.environment is None else {"type": tool.type, "environment": tool.environment}
    definition = tool.function or tool
    fields: JsonObject = {"type": tool.type, "name": _name(tool, path)}
    if isinstance(definition.description, str) or tool.type == "namespace":
        fields["description"] = definition.description or ""
    if tool.type == "function":
        fields |= {"parameters": _parameters(tool, path), "strict": definition.strict is True}
    elif tool.type == "namespace":
        inner_tools = enumerate(_inner_tools(tool, path))
        fields["tools"] = [_repeated(inner, f"{path}.tools.{index}") for index, inner in inner_tools]
    elif tool.format is not None:
        fields["format"] = tool.format
    return fields


# The choice...


def _with_choice(choice: str | ResponsesToolChoice | None, tools: OfferedTools) -> OfferedTools:
    match choice:
        case None | "auto" | "none":
            return _choosing(choice, tools)
        case "required":
            if not tools.functions:
                raise invalid("tool_choice", "must be `auto` or `none` if there are no tools")
            return _choosing(choice, tools)
        case ResponsesToolChoice(type="function" | "custom"):
            name = choice.name or (choice.function.name if choice.function else None)
            function = _find(choice.type, name, tools, "tool_choice.name")
            return _choosing({"type": "function", "function": {"name": function}}, tools)
        case ResponsesToolChoice(type=type_) if type_ in client_run_tools.FUNCTIONS:
            function = _find(type_, type_, tools, "tool_choice.type")
            return _choosing({"type": "function", "function": {"name": function}}, tools)
        case ResponsesToolChoice(type="allowed_tools"):
            return _only_allowed(choice, tools)
        case ResponsesToolChoice():
            raise invalid("tool_choice.type", f"`{choice.type}` runs only on OpenAI's servers: choose another tool")
    raise invalid("tool_choice", f"must be `auto`, `none`, `required` or a tool, not `{choice}`")


def _choosing(choice: str | JsonObject | None, tools: OfferedTools) -> OfferedTools:
    """A choice without tools is left out, since OpenAI and the engines reject it."""
    return replace(tools, choice=choice if tools.functions else None)


def _only_allowed(choice: ResponsesToolChoice, tools: OfferedTools) -> OfferedTools:
    """Engines have no `allowed_tools`, so the other tools are not offered."""
    if choice.mode not in {"auto", "required"}:
        raise invalid("tool_choice.mode", f"must be `auto` or `required`, not `{choice.mode}`")
    allowed = {
        _find(tool.type, tool.name or tool.type, tools, f"tool_choice.tools.{index}.name")
        for index, tool in enumerate(request_types.tools_in(choice.tools, "tool_choice.tools"))
        if tool.type in _CALLABLE and tool.type != "namespace"
    }
    functions = [function for function in tools.functions if function["function"]["name"] in allowed]
    if not functions:
        raise invalid("tool_choice.tools", "must name at least one function or custom tool in `tools`")
    return replace(tools, functions=functions, choice=choice.mode)


def _find(kind: str, name: str | None, tools: OfferedTools, path: str) -> str:
    """The function name of the tool of this kind that the client calls `name`."""
    for known, tool in tools.client_tools.items():
        if name in {known, tool.name} and tool.kind == kind:
            return known
    raise invalid(path, f"`{name}` is not the name of a tool in `tools`")
