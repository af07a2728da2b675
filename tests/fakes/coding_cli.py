"""A request as a popular coding CLI sends it (its shape was captured from one; all content is generated).

76 kB, 24 tools, system turns inside `messages`, several user messages in a row, `metadata.user_id` a JSON string,
`cache_control` everywhere, and fields that no backend of cortex knows.
"""

import json

EPHEMERAL = {"type": "ephemeral", "ttl": "1h"}
USER_ID = json.dumps({"device_id": "d" * 64, "account_uuid": "", "session_id": "0123-4567"})
TOOL_NAMES = [
    f"{verb}{noun}"
    for verb in ("Read", "Write", "Find", "Run", "List", "Ask")
    for noun in ("File", "Task", "Web", "Agent")
]
PROSE = "Use this tool when the work at hand asks for it; say in one sentence why, and never twice for the same file. "


def tool(name):
    properties = {
        f"{name.lower()}_{field}": {"type": "string", "description": PROSE, "maxLength": 1e3}
        for field in ("path", "text", "why")
    }
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "properties": properties}
    return {
        "name": name,
        "description": PROSE * 16,
        "input_schema": {**schema, "required": list(properties), "additionalProperties": False},
        "cache_control": EPHEMERAL,
        "eager_input_streaming": True,
    }


def request(turn=1):
    """The request of turn 1 or 2; the billing hash and the `cache_control` marks change between them."""
    return {
        "model": "helexa/small",
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": f"x-anthropic-billing-header: cc_version=2.1; cc_entrypoint=cli; cch={turn:05x};"},
            {"type": "text", "text": "You are a coding assistant.", "cache_control": EPHEMERAL},
            {"type": "text", "text": PROSE * 150, "cache_control": EPHEMERAL},
        ],
        "messages": first_turn() if turn == 1 else [*first_turn(), *second_turn()],
        "tools": [tool(name) for name in TOOL_NAMES],
        "metadata": {"user_id": USER_ID},
        "thinking": {"type": "adaptive", "display": "summarized"},
        "output_config": {"effort": "medium"},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "diagnostics": {"previous_message_id": None},
    }


def first_turn():
    return [
        {"role": "user", "content": [{"type": "text", "text": "<context>today</context>"}]},
        {"role": "user", "content": "Which files are there?"},
        {"role": "system", "content": [{"type": "text", "text": "Available agents: none", "cache_control": EPHEMERAL}]},
    ]


def second_turn():
    calls = [{"type": "tool_use", "id": f"toolu_{i}", "name": "ListFile", "input": {"path": f"/{i}"}} for i in (1, 2)]
    results = [
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "a.py"}, PICTURE]},
        {"type": "tool_result", "tool_use_id": "toolu_2", "content": "no such folder", "is_error": True},
    ]
    return [
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "Look.", "signature": "somebody else's"},
                {"type": "text", "text": "I will look."},
                *calls,
            ],
        },
        {"role": "user", "content": [{"type": "text", "text": "go on", "cache_control": EPHEMERAL}, *results]},
    ]


PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}


def body(turn=1):
    """The request's bytes on the wire."""
    return json.dumps(request(turn), separators=(",", ":")).encode()
