"""A client as a process that runs one scene of tests/clients/python or js (see `stage` there)."""

from __future__ import annotations

import json
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio
from fakes.patience import SAFETY_NET_S
from fakes.process import environment

TOP = Path(__file__).parent.parent.parent
SCENES = TOP / "tests" / "clients"
PYTHON = TOP / ".clients" / "python" / "bin" / "python"
OFFLINE = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LANGCHAIN_TRACING_V2": "false",
}  # otherwise they call the internet first


def command(script: str) -> list[str]:
    """How to start it."""
    return (
        ["node", str(SCENES / "js" / script)]
        if script.endswith(".mjs")
        else [str(PYTHON), str(SCENES / "python" / script)]
    )


@dataclass
class SceneProcess:
    """The process, and its standard error."""

    process: trio.Process
    errors: bytes = b""

    async def result(self) -> Any:
        """The scene's result. Raises AssertionError with the process's standard error if the scene failed."""
        line = b""
        with trio.fail_after(SAFETY_NET_S):
            while not line.endswith(b"\n") and (piece := await self.process.stdout.receive_some()):
                line += piece
        if not line.endswith(b"\n"):
            await self.process.wait()
            raise AssertionError(self.errors.decode()[-4000:])
        return json.loads(line)

    async def collect(self) -> None:
        """Read stderr to its end, so that the pipe never fills up."""
        async for piece in self.process.stderr:
            self.errors += piece


@asynccontextmanager
async def running_scene(script: str, scene: str, url: str, **env: str) -> AsyncIterator[Any]:
    """The scene's result, as soon as it is there; the process runs until the end of the block."""
    started = SceneProcess(
        await trio.lowlevel.open_process(
            [*command(script), scene],
            env=environment(CORTEX_URL=url, **OFFLINE, **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )
    try:
        async with started.process.stdin, started.process.stdout, trio.open_nursery() as nursery:
            nursery.start_soon(started.collect)
            yield await started.result()
            nursery.cancel_scope.cancel()
    finally:
        started.process.kill()
        with trio.CancelScope(shield=True):  # ends at once: it was killed
            await started.process.wait()
