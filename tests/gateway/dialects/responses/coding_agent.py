"""A request as a coding agent on the Responses API sends it, generated, so that it has no code of others in it.

`store: false`, `include` of encrypted thoughts, a developer message and the surroundings before the user's, functions
beside a custom tool, a namespace of functions and tools that only OpenAI runs.
"""

import json

PROSE = "Use this tool when the work at hand asks for it; say in one sentence why, and never twice for the same file. "


def function(name, **more):
    properties = {field: {"type": "string", "description": PROSE} for field in ("path", "text", "why")}
    schema = {"type": "object", "properties": properties, "required": ["path"], "additionalProperties": False}
    return {
        "type": "function",
        "name": name,
        "description": PROSE * 8,
        "strict": False,
        "parameters": schema,
        **more,
    }


TOOLS = [
    function("shell"),
    function("update_plan"),
    {
        "type": "custom",
        "name": "apply_patch",
        "description": "Edits files.",
        "format": {"type": "grammar", "syntax": "lark", "definition": "start: line+"},
    },
    {"type": "namespace", "name": "mcp__docs__", "description": "Documents.", "tools": [function("search")]},
    {"type": "web_search", "external_web_access": False},
    {"type": "tool_search"},
]


def message(role, *texts):
    kind = "output_text" if role == "assistant" else "input_text"
    return {"type": "message", "role": role, "content": [{"type": kind, "text": text} for text in texts]}


def request(turn=1):
    return {
        "model": "helexa/small",
        "instructions": "You are a coding agent. " + PROSE * 100,
        "input": first_turn() if turn == 1 else [*first_turn(), *second_turn()],
        "tools": TOOLS,
        "tool_choice": "auto",
        "parallel_tool_calls": True,
        "reasoning": {"effort": "medium", "summary": "auto"},
        "store": False,
        "stream": True,
        "include": ["reasoning.encrypted_content"],
        "prompt_cache_key": "0123-4567",
        "text": {"verbosity": "low"},
        "client_metadata": {"x-installation-id": "0123"},
    }


def first_turn():
    return [
        message("developer", "<permissions>ask before you write</permissions>"),
        message("user", "# Instructions of this folder", "<environment>today</environment>"),
        message("user", "Which files are there?"),
    ]


def second_turn():
    return [
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Look."}]},
        message("assistant", "I will look."),
        {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "shell", "arguments": '{"path": "/"}'},
        {"type": "custom_tool_call", "id": "ctc_1", "call_id": "call_2", "name": "apply_patch", "input": "*** a\n"},
        {
            "type": "function_call",
            "call_id": "call_3",
            "name": "search",
            "namespace": "mcp__docs__",
            "arguments": "{}",
        },
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": {"type": "search", "query": "x"}},
        {"type": "function_call_output", "call_id": "call_1", "output": "a.py\n"},
        {"type": "custom_tool_call_output", "call_id": "call_2", "output": "done"},
        {
            "type": "function_call_output",
            "call_id": "call_3",
            "output": [{"type": "input_text", "text": "none"}, PICTURE],
        },
        message("user", "Go on."),
    ]


PICTURE = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}


def body(turn=1):
    """The request body."""
    return json.dumps(request(turn), separators=(",", ":")).encode()
