"""The tools of a request as chat completions has them, and the way back from a function's name to the client's tool.

What the client runs itself becomes a function: a function is one, a custom tool is one with a single string, and those
inside a namespace get its name in front. What OpenAI runs on its servers (`web_search`, `code_interpreter`, `mcp`, ...)
nobody here can run. Such a tool is left out where there are others beside it, since agents offer them by default and a
model is free not to use one; the answer's own `tools` says which were offered. Where nothing else is offered, or the
client demands it, leaving it out would be answering another question: that is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.dialects.calls import decoded
from gateway.dialects.responses import incoming
from gateway.dialects.responses.incoming import Request, Tool, ToolChoice
from gateway.dialects.validate import read, refusal

__all__ = ["Callee", "Offer", "custom_arguments", "custom_input", "offer", "outgoing_name"]

Outgoing = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Callee:
    """A tool as the client knows it."""

    name: str
    namespace: str | None = None
    custom: bool = False


@dataclass(frozen=True, slots=True)
class Offer:
    """What a model is offered.

    Args:
        functions: As chat completions has them.
        choice: Its `tool_choice`, or None.
        told: As the answer repeats them to the client.
        callees: The client's own names of the functions, by the names the model knows.
    """

    functions: list[Outgoing]
    choice: str | Outgoing | None
    told: list[Outgoing]
    callees: Mapping[str, Callee]


def offer(request: Request) -> Offer:
    """Sort the tools out.

    Raises:
        BadRequest: One of them, or the choice, cannot be offered; message and `param` name it.
    """
    functions: list[Outgoing] = []
    told: list[Outgoing] = []
    callees: dict[str, Callee] = {}
    hosted: list[tuple[str, str]] = []
    for index, tool in enumerate(request.tools or ()):
        path = f"tools.{index}"
        if tool.type not in _CALLABLE:
            hosted.append((f"{path}.type", tool.type))
            continue
        for place, inner, callee in _callables(tool, path):
            name = outgoing_name(callee.name, callee.namespace)
            if name in callees:
                raise refusal(f"{place}.name", f"there is another tool of the name `{name}`")
            callees[name] = callee
            functions.append(_function(inner, name, place))
        told.append(_told(tool, path))
    if hosted and not functions:
        path, type_ = hosted[0]
        raise refusal(path, f"`{type_}` runs on OpenAI's servers and not here: offer a function of your own")
    return _chosen(request.tool_choice, Offer(functions, None, told, callees))


_CALLABLE = frozenset({"function", "custom", "namespace"})


def outgoing_name(name: str, namespace: str | None) -> str:
    """The one name of a tool that a model knows. OpenAI gives a function outside any namespace its own name as one."""
    return f"{namespace.rstrip('_')}__{name}" if namespace and namespace != name else name


def custom_arguments(text: str) -> str:
    """The arguments that stand for a custom tool's input."""
    return msgspec.json.encode({"input": text}).decode()


def custom_input(arguments: str) -> str:
    """The input that arguments stand for; what a model wrote in another way reaches the tool as it was written."""
    value = decoded(arguments)
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


# Functions...


def _callables(tool: Tool, path: str) -> Iterator[tuple[str, Tool, Callee]]:
    if tool.type != "namespace":
        yield path, tool, Callee(_name(tool, path), custom=tool.type == "custom")
        return
    namespace = _name(tool, path)
    for index, inner in enumerate(_inner(tool, path)):
        place = f"{path}.tools.{index}"
        if inner.type not in {"function", "custom"}:
            raise refusal(f"{place}.type", f"a namespace holds functions and custom tools, not `{inner.type}`")
        yield place, inner, Callee(_name(inner, place), namespace, inner.type == "custom")


def _inner(tool: Tool, path: str) -> list[Tool]:
    return read(incoming.tools_decoder, tool.tools, f"{path}.tools") if tool.tools else []


def _name(tool: Tool, path: str) -> str:
    name = tool.name or (tool.function.name if tool.function else None)
    if not name:
        raise refusal(f"{path}.name", "is missing")
    return name


def _function(tool: Tool, name: str, path: str) -> Outgoing:
    function: Outgoing = {"name": name}
    if description := _description(tool):
        function["description"] = description
    function["parameters"] = _CUSTOM_PARAMETERS if tool.type == "custom" else _parameters(tool, path)
    if tool.type == "function" and (tool.function or tool).strict is True:
        function["strict"] = True
    return {"type": "function", "function": function}


def _description(tool: Tool) -> str:
    given = (tool.function or tool).description
    text = given if isinstance(given, str) else ""
    match tool.format:
        case {"type": "grammar", "syntax": str(syntax), "definition": str(definition)}:
            return f"{text}\n\nThe input has to follow this {syntax} grammar:\n{definition}".lstrip()
    return text


def _parameters(tool: Tool, path: str) -> msgspec.Raw | Outgoing:
    """The schema as the client wrote it: its order of properties is part of the prompt."""
    schema = (tool.function or tool).parameters
    text = bytes(schema)
    if text.startswith(b"{"):
        return schema
    if text in {b"", b"null"}:
        return {"type": "object", "properties": {}}
    raise refusal(f"{path}.parameters", "must be an object")


_CUSTOM_PARAMETERS = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


def _told(tool: Tool, path: str) -> Outgoing:
    """The tool in the API's own form, whichever the client chose, with the fields that its types require."""
    given = tool.function or tool
    told: Outgoing = {"type": tool.type, "name": _name(tool, path)}
    if isinstance(given.description, str) or tool.type == "namespace":
        told["description"] = given.description or ""
    if tool.type == "function":
        told |= {"parameters": _parameters(tool, path), "strict": given.strict is True}
    elif tool.type == "namespace":
        told["tools"] = [_told(inner, f"{path}.tools.{index}") for index, inner in enumerate(_inner(tool, path))]
    elif tool.format is not None:
        told["format"] = tool.format
    return told


# The choice...


def _chosen(choice: str | ToolChoice | None, offered: Offer) -> Offer:
    match choice:
        case None | "auto" | "none":
            return _with(offered, choice)
        case "required":
            if not offered.functions:
                raise refusal("tool_choice", "must be `auto` or `none` where there are no tools")
            return _with(offered, choice)
        case ToolChoice(type="function" | "custom"):
            name = choice.name or (choice.function.name if choice.function else None)
            return _with(offered, _named(_find(name, choice.type == "custom", offered, "tool_choice.name")))
        case ToolChoice(type="allowed_tools"):
            return _narrowed(choice, offered)
        case ToolChoice():
            raise refusal("tool_choice.type", f"`{choice.type}` runs on OpenAI's servers and not here")
    raise refusal("tool_choice", f"must be `auto`, `none`, `required` or a tool, not `{choice}`")


def _narrowed(choice: ToolChoice, offered: Offer) -> Offer:
    """Engines know no list of allowed tools: the others are not offered."""
    if choice.mode not in {"auto", "required"}:
        raise refusal("tool_choice.mode", f"must be `auto` or `required`, not `{choice.mode}`")
    allowed = {
        _find(tool.name, tool.type == "custom", offered, f"tool_choice.tools.{index}.name")
        for index, tool in enumerate(choice.tools or ())
        if tool.type in {"function", "custom"}
    }
    functions = [function for function in offered.functions if function["function"]["name"] in allowed]
    if not functions:
        raise refusal("tool_choice.tools", "names no tool that is offered")
    return Offer(functions, choice.mode, offered.told, offered.callees)


def _find(name: str | None, custom: bool, offered: Offer, path: str) -> str:
    for known, callee in offered.callees.items():
        if name in {known, callee.name} and callee.custom is custom:
            return known
    raise refusal(path, f"no tool of that name is among `tools`: {name}")


def _named(name: str) -> Outgoing:
    return {"type": "function", "function": {"name": name}}


def _with(offered: Offer, choice: str | Outgoing | None) -> Offer:
    """A choice without tools is left out: OpenAI refuses it, and so do engines."""
    return Offer(offered.functions, choice if offered.functions else None, offered.told, offered.callees)
