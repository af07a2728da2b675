"""Anthropic's tools that the client runs but that have no schema: bash, text editor, memory, computer.

Anthropic's models know these tools by their type. Other models need a schema, so each becomes an ordinary function
whose arguments are the input that clients expect in the `tool_use` block. Commands and fields as in
https://docs.anthropic.com/en/docs/agents-and-tools/tool-use (pages "Bash tool", "Text editor tool", "Memory tool" and
"Computer use tool").
"""

from __future__ import annotations

import re
from typing import Any

from gateway.dialects.loose_json import JsonObject

__all__ = ["client_run_tool"]

_TYPE = re.compile(r"(bash|text_editor|memory|computer)_(\d{8})")


def client_run_tool(type_: str | None, definition: JsonObject) -> JsonObject | None:
    """`name`, `description` and `parameters` of the function for a tool of this type; None for any other type.

    Args:
        type_: As the client wrote it, with its version: `bash_20250124`. Unknown versions count as the newest known.
        definition: The other fields of the client's definition, such as `display_width_px`.
    """
    match = _TYPE.fullmatch(type_ or "")
    if match is None:
        return None
    kind, version = match[1], int(match[2])
    if kind == "bash":
        return _BASH
    if kind == "memory":
        return _MEMORY
    if kind == "text_editor":
        return _text_editor(version, definition)
    return _computer(version, definition)


def _function(name: str, description: str, properties: dict[str, Any], required: list[str]) -> JsonObject:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"name": name, "description": description, "parameters": parameters}


def _text(description: str) -> JsonObject:
    return {"type": "string", "description": description}


def _whole_number(description: str) -> JsonObject:
    return {"type": "integer", "description": description}


def _choice(description: str, *values: str) -> JsonObject:
    return {"type": "string", "enum": list(values), "description": description}


_BASH = _function(
    "bash",
    "Runs a command in a bash session on the user's machine. The session is persistent: the working directory and "
    "variables are kept between calls. Commands cannot be interactive.",
    {
        "command": _text("The command to run. Required unless `restart` is true."),
        "restart": {"type": "boolean", "description": "Set to true to restart the session."},
    },
    [],
)

_RANGE = {"type": "array", "items": {"type": "integer"}, "minItems": 2, "maxItems": 2}


def _text_editor(version: int, definition: JsonObject) -> JsonObject:
    """Before 20250429 an insertion's text was `new_str`, and `undo_edit` existed."""
    is_old = version < 20250429
    commands = ["view", "create", "str_replace", "insert", *(["undo_edit"] if is_old else [])]
    limit = definition.get("max_characters")
    bound = f" A view shows at most {limit} characters." if isinstance(limit, int) else ""
    inserted = "new_str" if is_old else "insert_text"
    properties = {
        "command": _choice("What to do.", *commands),
        "path": _text("Absolute path of a file or directory."),
        "view_range": {
            **_RANGE,
            "description": "For `view` of a file: first and last line, counted from 1; -1 is the file's end.",
        },
        "file_text": _text("For `create`: the whole content of the new file."),
        "old_str": _text("For `str_replace`: the text to replace. It must occur exactly once, white space included."),
        "new_str": _text("For `str_replace`: the text to put in its place; may be empty."),
        "insert_line": _whole_number("For `insert`: the line after which to insert; 0 is the file's beginning."),
        inserted: _text("For `insert`: the text to insert."),
    }
    if is_old:
        properties["new_str"] = _text("For `str_replace`: the new text. For `insert`: the text to insert.")
    return _function(
        "str_replace_editor" if is_old else "str_replace_based_edit_tool",
        f"Views, creates and edits text files on the user's machine.{bound}",
        properties,
        ["command", "path"],
    )


_MEMORY = _function(
    "memory",
    "Reads and writes files in the directory /memories, which is kept between conversations. View the directory before "
    "you begin a task, and record what will be useful later.",
    {
        "command": _choice("What to do.", "view", "create", "str_replace", "insert", "delete", "rename"),
        "path": _text("Path of a file or directory, beginning with /memories. For all commands but `rename`."),
        "view_range": {**_RANGE, "description": "For `view` of a file: first and last line, counted from 1."},
        "file_text": _text("For `create`: the whole content of the file."),
        "old_str": _text("For `str_replace`: the text to replace. It must occur exactly once."),
        "new_str": _text("For `str_replace`: the text to put in its place."),
        "insert_line": _whole_number("For `insert`: the line after which to insert; 0 is the file's beginning."),
        "insert_text": _text("For `insert`: the text to insert."),
        "old_path": _text("For `rename`: the present path."),
        "new_path": _text("For `rename`: the new path."),
    },
    ["command"],
)

_ACTIONS = """
    key type mouse_move left_click left_click_drag right_click middle_click double_click screenshot cursor_position
"""
_ACTIONS_20250124 = "left_mouse_down left_mouse_up scroll hold_key wait triple_click"


def _computer(version: int, definition: JsonObject) -> JsonObject:
    actions = _ACTIONS.split()
    if version >= 20250124:
        actions += _ACTIONS_20250124.split()
    if version >= 20251124 and definition.get("enable_zoom") is True:
        actions.append("zoom")
    point = {**_RANGE, "items": {"type": "integer"}}
    properties: dict[str, Any] = {
        "action": _choice("What to do.", *actions),
        "coordinate": {**point, "description": "x and y in pixels from the upper left corner, for mouse actions."},
        "start_coordinate": {**point, "description": "For `left_click_drag`: where the drag begins."},
        "text": _text(
            "For `type`: the text. For `key` and `hold_key`: the keys, such as `ctrl+s`. For clicks and "
            "`scroll`: keys to hold."
        ),
    }
    if version >= 20250124:
        properties |= {
            "scroll_direction": _choice("For `scroll`.", "up", "down", "left", "right"),
            "scroll_amount": _whole_number("For `scroll`: number of clicks of the wheel."),
            "duration": {"type": "number", "description": "For `wait` and `hold_key`: seconds."},
        }
    if "zoom" in actions:
        properties["region"] = {
            "type": "array",
            "items": {"type": "integer"},
            "minItems": 4,
            "maxItems": 4,
            "description": "For `zoom`: x and y of the upper left and of the lower right corner.",
        }
    width, height = definition.get("display_width_px"), definition.get("display_height_px")
    size = f" The screen is {width} pixels wide and {height} pixels high." if width and height else ""
    number = definition.get("display_number")
    display = f" It is X11 display {number}." if isinstance(number, int) else ""
    return _function(
        "computer",
        "Controls the mouse and keyboard of a computer and takes screenshots. Take a screenshot before you act and "
        f"after it, to see the effect.{size}{display}",
        properties,
        ["action"],
    )
