"""What every scene begins with: `SCENE.py NAME` plays one of its functions and prints what it saw as a line of JSON.

Then it waits until its standard input ends: what an abort does must not be mistaken for what the end of a process does.
The gateway's address is in CORTEX_URL. Nothing here may know of cortex beyond that: the scenes are its users' code.
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
NOBODY = "nobody/has-it"


def play(scenes):
    """`scenes` is the module's own globals."""
    scene = scenes[sys.argv[1]]
    with contextlib.redirect_stdout(sys.stderr):  # some of these libraries like to talk
        seen = asyncio.run(scene()) if inspect.iscoroutinefunction(scene) else scene()
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    sys.stdin.read()


def caught(error, status=None):
    """An error as the client raised it: its type's name, the status it knows, and its words."""
    status = getattr(error, "status_code", None) if status is None else status
    return {"type": type(error).__name__, "status": status, "message": str(error)}
