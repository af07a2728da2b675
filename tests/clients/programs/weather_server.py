"""An MCP server with one tool, on its standard input and output."""

import json
import sys

ANSWERS = {
    "initialize": {
        "protocolVersion": "2025-06-18",
        "capabilities": {"tools": {}},
        "serverInfo": {"name": "scene", "version": "1"},
    },
    "tools/list": {
        "tools": [
            {
                "name": "weather",
                "description": "Tells the weather of a city.",
                "inputSchema": {"type": "object", "properties": {"city": {"type": "string"}}},
            }
        ]
    },
    "tools/call": {"content": [{"type": "text", "text": "sunny"}]},
}

for line in sys.stdin:
    request = json.loads(line)
    if "id" in request:
        answer = {"jsonrpc": "2.0", "id": request["id"], "result": ANSWERS.get(request["method"], {})}
        sys.stdout.write(f"{json.dumps(answer)}\n")
        sys.stdout.flush()
