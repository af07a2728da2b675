"""Coding agents as their users start them: a process without a terminal, told one thing, in a folder of its own.

Their settings are those of docs/clients.md, word for word but for the address. They have no other environment and no
home but the test's, so that nothing of whoever runs the tests decides what is tested.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio
from fakes.client_docs import settings
from fakes.patience import SAFETY_NET_S
from fakes.scene import SCENES, TOP
from fakes.scripted_model import Call

NODE_MODULES = SCENES / "programs" / "node_modules"
BINARIES = (
    NODE_MODULES / ".bin",
    NODE_MODULES / "opencode-linux-x64" / "bin",
    *(TOP / ".clients" / environment / "bin" for environment in ("aider", "python")),
)
PROGRAM_S = 4 * SAFETY_NET_S  # they are large, and some ask the internet first
UNKNOWN = "nobody/has-it"


class Agent:
    """One of them: how it is started, and what the scenes need to know of it."""

    name: str  # on the page
    asks: str  # this path
    unknown_model: tuple[str, ...]  # the options that ask for one

    def command(self, prompt: str, *more: str) -> list[str]:
        """With `more` options. Nobody is there whom it could ask for permission."""
        raise NotImplementedError

    def settle(self, home: Path, told: str) -> str:
        """What the page says for it goes into a file or, as returned, into the shell."""
        raise NotImplementedError


class ClaudeCode(Agent):
    """Anthropic's."""

    name, asks = "Claude Code", "/v1/messages"
    unknown_model = ("--model", UNKNOWN)

    def command(self, prompt: str, *more: str) -> list[str]:
        options = ("--output-format", "stream-json", "--verbose", "--allowedTools", "Bash,Read,mcp__scene__weather")
        return ["claude", "-p", prompt, *options, *more]

    def settle(self, home: Path, told: str) -> str:
        return told


class Codex(Agent):
    """OpenAI's."""

    name, asks = "Codex", "/v1/responses"
    unknown_model = ("--model", UNKNOWN)

    def command(self, prompt: str, *more: str) -> list[str]:
        return ["codex", "exec", "--json", "--skip-git-repo-check", *more, prompt]

    def settle(self, home: Path, told: str) -> str:
        _write(home / ".codex" / "config.toml", told)
        return ""


class OpenCode(Agent):
    """Which speaks through the Vercel AI SDK."""

    name, asks = "OpenCode", "/v1/chat/completions"
    unknown_model = ("--model", f"cortex/{UNKNOWN}")

    def command(self, prompt: str, *more: str) -> list[str]:
        return ["opencode", "run", "--format", "json", *more, prompt]

    def settle(self, home: Path, told: str) -> str:
        config = json.loads(told)
        config["provider"]["cortex"]["models"][UNKNOWN] = {}  # it would refuse by itself what is not listed
        _write(home / ".config" / "opencode" / "opencode.json", json.dumps(config))
        return "export OPENCODE_DISABLE_AUTOUPDATE=1 OPENCODE_DISABLE_MODELS_FETCH=1 OPENCODE_DISABLE_LSP_DOWNLOAD=1"


class Aider(Agent):
    """Which calls no tools: it edits by what the model writes."""

    name, asks = "aider", "/v1/chat/completions"
    unknown_model = ("--model", f"openai/{UNKNOWN}")

    def command(self, prompt: str, *more: str) -> list[str]:
        quiet = ("--no-pretty", "--no-check-update", "--no-show-release-notes", "--no-show-model-warnings")
        return ["aider", "--yes-always", *quiet, *more, "--message", prompt]

    def settle(self, home: Path, told: str) -> str:
        return f"{told}export AIDER_ANALYTICS=false"


class Llm(Agent):
    """No agent, but for its tools: one question, one answer."""

    name, asks = "llm", "/v1/chat/completions"
    unknown_model = ("-m", UNKNOWN)

    def command(self, prompt: str, *more: str) -> list[str]:
        return ["llm", "-m", "cortex", *more, prompt]

    def settle(self, home: Path, told: str) -> str:
        nobody = told.replace("model_id: cortex", f"model_id: {UNKNOWN}").replace("helexa/large", UNKNOWN)
        _write(home / ".config" / "io.datasette.llm" / "extra-openai-models.yaml", told + nobody)
        return ""


CLAUDE_CODE, CODEX, OPENCODE, AIDER, LLM = ClaudeCode(), Codex(), OpenCode(), Aider(), Llm()
AGENTS = (CLAUDE_CODE, CODEX, OPENCODE, AIDER, LLM)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@dataclass
class Said:
    """What a process said, so far or in all, and how it ended."""

    process: trio.Process
    out: bytes = b""
    complaints: bytes = b""

    @property
    def text(self) -> str:
        """Both of its voices: agents do not agree on which is for errors."""
        return (self.out + self.complaints).decode()

    def signal(self, what: signal.Signals) -> None:
        """To it and to all it has started, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, what)


@dataclass
class AliasCommands:
    """A folder to work in, and a home beside it."""

    folder: Path
    home: Path
    url: str

    async def run(self, agent: Agent, prompt: str, *more: str) -> Said:
        """To its end."""
        with trio.fail_after(PROGRAM_S):
            async with self.running(agent, prompt, *more) as said:
                await said.process.wait()
        return said

    @asynccontextmanager
    async def running(self, agent: Agent, prompt: str, *more: str) -> AsyncIterator[Said]:
        """For as long as the block goes on; what it has said is complete when that is left."""
        shell = agent.settle(self.home, settings(agent.name, self.url))
        process = await trio.lowlevel.open_process(
            ["bash", "-c", f"{shell}\nexec {shlex.join(agent.command(prompt, *more))}"],
            cwd=self.folder,
            env={
                "PATH": os.pathsep.join([*map(str, BINARIES), os.environ["PATH"]]),
                "HOME": str(self.home),
                "TMPDIR": str(self.home),
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        said = Said(process)
        try:
            async with process.stdout, process.stderr, trio.open_nursery() as nursery:
                nursery.start_soon(_hear, process.stdout, said, "out")
                nursery.start_soon(_hear, process.stderr, said, "complaints")
                yield said
                said.signal(signal.SIGKILL)  # what is left of it
        finally:
            said.signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):  # ends at once: it was killed
                await process.wait()


async def _hear(stream: trio.abc.ReceiveStream, said: Said, voice: str) -> None:
    async for piece in stream:
        setattr(said, voice, getattr(said, voice) + bytes(piece))


def desk(folder: Path, url: str) -> AliasCommands:
    """A new one, empty."""
    for name in ("project", "home"):
        (folder / name).mkdir()
    return AliasCommands(folder / "project", folder / "home", url)


def reading(agent: Agent, path: Path) -> Call:
    """How a model has it read a file."""
    calls = {
        "Claude Code": Call("Read", {"file_path": str(path)}),
        "Codex": Call("exec_command", {"cmd": f"cat {path}"}),
        "OpenCode": Call("read", {"filePath": str(path)}),
    }
    return calls[agent.name]
