"""Responses requests for tests: written shortly, and what a neuron receives of them."""

import base64
import json

from gateway.config.engine_traits import PLAIN
from gateway.dialects.responses import request

KEY = bytes(32)


def outgoing(body, backend=PLAIN):
    if isinstance(body, dict):
        body = json.dumps({"model": "m", **body}).encode()
    return json.loads(request.translate(body, secret_key=KEY).encode("lab/m", backend))


def user(content):
    return {"role": "user", "content": content}


def data_url(content, media_type="text/plain"):
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
