"""OpenAI's tools that the client runs but that have no schema: `apply_patch`, `shell`, `local_shell`.

OpenAI's models know these tools by their type. Other models need a schema, so each becomes a function of the same name
whose arguments are the fields of the tool's own call item. Items as in
https://platform.openai.com/docs/guides/tools-apply-patch, tools-shell and tools-local-shell.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from gateway.dialects.loose_json import JsonObject
from gateway.dialects.tool_calls import decode_arguments

__all__ = ["CALL_TYPES", "FUNCTIONS", "OUTPUT_TYPES", "call_arguments", "call_fields", "output_text"]

_TIMEOUT = {"type": "integer", "description": "Milliseconds after which a command is stopped."}


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> JsonObject:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": parameters}


FUNCTIONS: Mapping[str, JsonObject] = MappingProxyType(
    {
        "shell": _function(
            "shell",
            "Runs shell commands on the user's machine. Returns the output and exit code of each.",
            {
                "commands": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "Command lines. They may run at the same time.",
                },
                "timeout_ms": _TIMEOUT,
                "max_output_length": {"type": "integer", "description": "Characters of output to return."},
            },
            ["commands"],
        ),
        "local_shell": _function(
            "local_shell",
            "Runs one command on the user's machine and returns its output.",
            {
                "command": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": 'The program and its arguments, such as ["bash", "-lc", "ls -l"].',
                },
                "working_directory": {"type": "string", "description": "Where to run it."},
                "timeout_ms": _TIMEOUT,
                "env": {
                    "type": "object",
                    "additionalProperties": {"type": "string"},
                    "description": "Environment variables.",
                },
            },
            ["command"],
        ),
        "apply_patch": _function(
            "apply_patch",
            "Creates, updates or deletes one file on the user's machine.",
            {
                "type": {
                    "type": "string",
                    "enum": ["create_file", "update_file", "delete_file"],
                    "description": "What to do.",
                },
                "path": {"type": "string", "description": "Path of the file, relative to the working directory."},
                "diff": {
                    "type": "string",
                    "description": "For `create_file`: every line of the file with a `+` before it. For `update_file`: "
                    "hunks in V4A form: `@@` with a line of context (a function's head, say), then unchanged lines "
                    "with a space, removed ones with a `-` and added ones with a `+` before them; three unchanged "
                    "lines before and after a change. No line numbers. Not for `delete_file`.",
                },
            },
            ["type", "path"],
        ),
    }
)
"""The function for each tool, by the tool's type, which is the function's name too."""

CALL_TYPES: Mapping[str, str] = MappingProxyType({f"{tool}_call": tool for tool in FUNCTIONS})
OUTPUT_TYPES: Mapping[str, str] = MappingProxyType({f"{tool}_call_output": tool for tool in FUNCTIONS})

_FIELDS = MappingProxyType({"shell": "action", "local_shell": "action", "apply_patch": "operation"})


def call_arguments(tool: str, details: JsonObject) -> str:
    """The function's arguments for a call item's `action` or `operation`."""
    if tool == "local_shell":
        details = {name: value for name, value in details.items() if name != "type"}
    return msgspec.json.encode({name: value for name, value in details.items() if value is not None}).decode()


def call_fields(tool: str, arguments: str) -> JsonObject | None:
    """The fields of a call item that say what to do, from the function's arguments.

    None if the arguments are not what the schema asks for. Such a call goes to the client as a `function_call`: the
    client rejects it, and the model sees why. A client must never run something that the model did not mean.
    """
    value = decode_arguments(arguments)
    if not isinstance(value, dict):
        return None
    details = _READERS[tool](value)
    return None if details is None else {_FIELDS[tool]: details}


def _shell_action(value: JsonObject) -> JsonObject | None:
    commands = value.get("commands")
    if isinstance(commands, str):
        commands = [commands]
    if not _are_texts(commands):
        return None
    return {
        "commands": commands,
        "timeout_ms": _whole_number(value.get("timeout_ms")),
        "max_output_length": _whole_number(value.get("max_output_length")),
    }


def _local_shell_action(value: JsonObject) -> JsonObject | None:
    command = value.get("command")
    if isinstance(command, str):
        command = ["bash", "-lc", command]
    if not _are_texts(command):
        return None
    env, directory, user = value.get("env"), value.get("working_directory"), value.get("user")
    action: JsonObject = {"type": "exec", "command": command, "env": {}}
    if isinstance(env, dict):
        action["env"] = {name: text for name, text in env.items() if isinstance(text, str)}
    action["timeout_ms"] = _whole_number(value.get("timeout_ms"))
    action["user"] = user if isinstance(user, str) else None
    action["working_directory"] = directory if isinstance(directory, str) and directory else None
    return action


def _patch_operation(value: JsonObject) -> JsonObject | None:
    kind, path, diff = value.get("type"), value.get("path"), value.get("diff")
    if kind not in {"create_file", "update_file", "delete_file"} or not isinstance(path, str) or not path:
        return None
    if kind == "delete_file":
        return {"type": kind, "path": path}
    return {"type": kind, "path": path, "diff": diff} if isinstance(diff, str) else None


_READERS = MappingProxyType(
    {"shell": _shell_action, "local_shell": _local_shell_action, "apply_patch": _patch_operation}
)


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)


def _whole_number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def output_text(output: object, status: object) -> str:
    """A `*_call_output` item's output as text for the model.

    Args:
        output: Decoded: a text, None, or the list of a `shell_call_output`.
        status: The item's `status`. A failure is marked in the text, as a `tool` message has no other place for it.
    """
    if isinstance(output, list):
        text = "\n".join(map(_command_output, output))
    elif isinstance(output, str):
        text = output
    else:
        text = "" if output is None else msgspec.json.encode(output).decode()
    if status == "failed":
        return f"Error: {text}" if text else "Error"
    return text or (status if isinstance(status, str) else "")


def _command_output(value: object) -> str:
    """Output, error output and end of one command of a `shell_call_output`."""
    if not isinstance(value, dict):
        return value if isinstance(value, str) else msgspec.json.encode(value).decode()
    lines = []
    if isinstance(stdout := value.get("stdout"), str) and stdout:
        lines.append(stdout.removesuffix("\n"))
    if isinstance(stderr := value.get("stderr"), str) and stderr:
        lines += ["[stderr]", stderr.removesuffix("\n")]
    match value.get("outcome"):
        case {"type": "exit", "exit_code": int(code)}:
            lines.append(f"[exit code {code}]")
        case {"type": "timeout"}:
            lines.append("[timed out]")
    return "\n".join(lines)
