"""Messages requests for tests: written shortly, and what a neuron receives of them."""

import json

from gateway.config.engine_traits import PLAIN, Backend
from gateway.dialects.anthropic import request

SEPARATE = Backend(alternating_roles=False)


def outgoing(body, backend=PLAIN):
    if isinstance(body, dict):
        body = json.dumps({"model": "m", **body}).encode()
    return json.loads(request.translate(body).encode("lab/m", backend))


def messages(*turns, backend=PLAIN, **more):
    return outgoing({"messages": list(turns), **more}, backend)["messages"]


def user(content):
    return {"role": "user", "content": content}


def assistant(content):
    return {"role": "assistant", "content": content}


SEARCH = {"name": "Search", "input_schema": {"type": "object"}}


WEB_SEARCH = {"type": "web_search_20250305", "name": "web_search"}
