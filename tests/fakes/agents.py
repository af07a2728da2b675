"""Coding agents as their users start them: a process without a terminal, with one prompt, in a folder of its own.

Their settings are those of docs/clients.md, except for the address. Their environment and home are the test's own, so
the settings of the person who runs the tests have no effect.
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
PROGRAM_S = 4 * SAFETY_NET_S  # they are large, and some call the internet first
UNKNOWN = "nobody/has-it"


class Agent:
    """One agent: how to start it, and what the tests need to know of it."""

    name: str  # in docs/clients.md
    api_path: str  # the path of its requests
    unknown_model: tuple[str, ...]  # the options that select one

    def command(self, prompt: str, *more: str) -> list[str]:
        """The command line, with `more` options. The agent cannot ask for permission, because there is no terminal."""
        raise NotImplementedError

    def configure(self, home: Path, page_settings: str) -> str:
        """Write the page's settings to a file, or return them as shell commands."""
        raise NotImplementedError


class ClaudeCode(Agent):
    """Anthropic's."""

    name, api_path = "Claude Code", "/v1/messages"
    unknown_model = ("--model", UNKNOWN)

    def command(self, prompt: str, *more: str) -> list[str]:
        options = ("--output-format", "stream-json", "--verbose", "--allowedTools", "Bash,Read,mcp__scene__weather")
        return ["claude", "-p", prompt, *options, *more]

    def configure(self, home: Path, page_settings: str) -> str:
        return page_settings


class Codex(Agent):
    """OpenAI's."""

    name, api_path = "Codex", "/v1/responses"
    unknown_model = ("--model", UNKNOWN)

    def command(self, prompt: str, *more: str) -> list[str]:
        return ["codex", "exec", "--json", "--skip-git-repo-check", *more, prompt]

    def configure(self, home: Path, page_settings: str) -> str:
        _write(home / ".codex" / "config.toml", page_settings)
        return ""


class OpenCode(Agent):
    """Uses the Vercel AI SDK."""

    name, api_path = "OpenCode", "/v1/chat/completions"
    unknown_model = ("--model", f"cortex/{UNKNOWN}")

    def command(self, prompt: str, *more: str) -> list[str]:
        return ["opencode", "run", "--format", "json", *more, prompt]

    def configure(self, home: Path, page_settings: str) -> str:
        config = json.loads(page_settings)
        config["provider"]["cortex"]["models"][UNKNOWN] = {}  # OpenCode refuses models that are not listed
        _write(home / ".config" / "opencode" / "opencode.json", json.dumps(config))
        return "export OPENCODE_DISABLE_AUTOUPDATE=1 OPENCODE_DISABLE_MODELS_FETCH=1 OPENCODE_DISABLE_LSP_DOWNLOAD=1"


class Aider(Agent):
    """Calls no tools: it edits files by the model's text."""

    name, api_path = "aider", "/v1/chat/completions"
    unknown_model = ("--model", f"openai/{UNKNOWN}")

    def command(self, prompt: str, *more: str) -> list[str]:
        quiet = ("--no-pretty", "--no-check-update", "--no-show-release-notes", "--no-show-model-warnings")
        return ["aider", "--yes-always", *quiet, *more, "--message", prompt]

    def configure(self, home: Path, page_settings: str) -> str:
        return f"{page_settings}export AIDER_ANALYTICS=false"


class Llm(Agent):
    """A question and an answer, and its own tools."""

    name, api_path = "llm", "/v1/chat/completions"
    unknown_model = ("-m", UNKNOWN)

    def command(self, prompt: str, *more: str) -> list[str]:
        return ["llm", "-m", "cortex", *more, prompt]

    def configure(self, home: Path, page_settings: str) -> str:
        unknown_entry = page_settings.replace("model_id: cortex", f"model_id: {UNKNOWN}").replace(
            "helexa/large", UNKNOWN
        )
        _write(home / ".config" / "io.datasette.llm" / "extra-openai-models.yaml", page_settings + unknown_entry)
        return ""


CLAUDE_CODE, CODEX, OPENCODE, AIDER, LLM = ClaudeCode(), Codex(), OpenCode(), Aider(), Llm()
AGENTS = (CLAUDE_CODE, CODEX, OPENCODE, AIDER, LLM)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@dataclass
class AgentOutput:
    """The output of a process so far or in all, and its exit status."""

    process: trio.Process
    out: bytes = b""
    errors: bytes = b""

    @property
    def text(self) -> str:
        """Standard output and standard error: agents differ in which they use for errors."""
        return (self.out + self.errors).decode()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process and all its children, as a terminal does."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)


@dataclass
class AgentRunner:
    """A folder to work in, and a home beside it."""

    folder: Path
    home: Path
    url: str

    async def run(self, agent: Agent, prompt: str, *more: str) -> AgentOutput:
        """Run the agent to its end."""
        with trio.fail_after(PROGRAM_S):
            async with self.running(agent, prompt, *more) as output:
                await output.process.wait()
        return output

    @asynccontextmanager
    async def running(self, agent: Agent, prompt: str, *more: str) -> AsyncIterator[AgentOutput]:
        """Run the agent for the duration of the block; its output is complete when the block has ended."""
        shell = agent.configure(self.home, settings(agent.name, self.url))
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
        output = AgentOutput(process)
        try:
            async with process.stdout, process.stderr, trio.open_nursery() as nursery:
                nursery.start_soon(_collect, process.stdout, output, "out")
                nursery.start_soon(_collect, process.stderr, output, "errors")
                yield output
                output.signal(signal.SIGKILL)  # its remaining children
        finally:
            output.signal(signal.SIGKILL)
            with trio.CancelScope(shield=True):  # ends at once: it was killed
                await process.wait()


async def _collect(stream: trio.abc.ReceiveStream, output: AgentOutput, stream_name: str) -> None:
    async for piece in stream:
        setattr(output, stream_name, getattr(output, stream_name) + bytes(piece))


def agent_runner(folder: Path, url: str) -> AgentRunner:
    """A new runner with empty folders."""
    for name in ("project", "home"):
        (folder / name).mkdir()
    return AgentRunner(folder / "project", folder / "home", url)


def read_call(agent: Agent, path: Path) -> Call:
    """The tool call with which a model makes this agent read a file."""
    calls = {
        "Claude Code": Call("Read", {"file_path": str(path)}),
        "Codex": Call("exec_command", {"cmd": f"cat {path}"}),
        "OpenCode": Call("read", {"filePath": str(path)}),
    }
    return calls[agent.name]
