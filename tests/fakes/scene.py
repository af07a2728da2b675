"""A client as a process of its own, playing one scene of tests/clients/python or js (see `stage` there)."""

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
OFFLINE = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LANGCHAIN_TRACING_V2": "false"}  # they would ask the internet first


def command(script: str) -> list[str]:
    """How to start it."""
    return (
        ["node", str(SCENES / "js" / script)]
        if script.endswith(".mjs")
        else [str(PYTHON), str(SCENES / "python" / script)]
    )


@dataclass
class Player:
    """The process, and what it says on stderr."""

    process: trio.Process
    complaints: bytes = b""

    async def seen(self) -> Any:
        """What the scene saw. Raises AssertionError with the process's own words if it fell over."""
        line = b""
        with trio.fail_after(SAFETY_NET_S):
            while not line.endswith(b"\n") and (piece := await self.process.stdout.receive_some()):
                line += piece
        if not line.endswith(b"\n"):
            await self.process.wait()
            raise AssertionError(self.complaints.decode()[-4000:])
        return json.loads(line)

    async def collect(self) -> None:
        """Read stderr to its end, so that it never fills up."""
        async for piece in self.process.stderr:
            self.complaints += piece


@asynccontextmanager
async def playing(script: str, scene: str, url: str, **env: str) -> AsyncIterator[Any]:
    """What the scene saw, as soon as it has; its process goes on until the block is left."""
    player = Player(
        await trio.lowlevel.open_process(
            [*command(script), scene],
            env=environment(CORTEX_URL=url, **OFFLINE, **env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
    )
    try:
        async with player.process.stdin, player.process.stdout, trio.open_nursery() as nursery:
            nursery.start_soon(player.collect)
            yield await player.seen()
            nursery.cancel_scope.cancel()
    finally:
        player.process.kill()
        with trio.CancelScope(shield=True):  # ends at once: it was killed
            await player.process.wait()
