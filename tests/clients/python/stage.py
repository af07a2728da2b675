"""Start of every scene: `SCENE.py NAME` runs one of its functions and prints the result as a line of JSON.

Then it waits until its standard input ends, so that the effect of an abort is not confused with the effect of the
process's end. CORTEX_URL has the gateway's address. Scenes contain users' code and know nothing else of cortex.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import sys

URL = os.environ["CORTEX_URL"]
MODEL = "helexa/small"
QUESTION = "What is the capital of Georgia?"
CALL = "Please call weather."
WEATHER_SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
REPORT = "sunny"
LONG = "Write 4000 words"
UNKNOWN_MODEL = "nobody/has-it"


def play(scenes):
    """`scenes` is the module's own globals."""
    scene = scenes[sys.argv[1]]
    with contextlib.redirect_stdout(sys.stderr):  # some of these libraries print
        result = asyncio.run(scene()) if inspect.iscoroutinefunction(scene) else scene()
    sys.stdout.write(json.dumps(result) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def caught(error, status=None):
    """An error as the client raised it: the name of its type, its status, and its message."""
    status = getattr(error, "status_code", None) if status is None else status
    return {"type": type(error).__name__, "status": status, "message": str(error)}
