"""Coding agents from npm and PyPI, unmodified, set as docs/clients.md has it, before a neuron that says its part.

The scenes: an answer, a tool called and its result sent back, a model that nobody has, a stream that breaks off, a
neuron that is full, and Ctrl-C. What only one of them does comes after.
"""

import json
import signal
import sys

import pytest
import structlog
import trio
from fakes.agents import AGENTS, AIDER, CLAUDE_CODE, CODEX, LLM, OPENCODE, UNKNOWN, desk, reading
from fakes.fleets import assert_idle
from fakes.patience import until
from fakes.running import LARGE, SMALL, running_gateway
from fakes.scene import SCENES
from fakes.scripted_model import Call, ScriptedNeuron

from neuron.simulated.faults import Drop, HttpError

ANSWER = "The capital of Georgia is Tbilisi, on the Mtkvari."
QUESTION = "What is the capital of Georgia?"
READERS = [CLAUDE_CODE, CODEX, OPENCODE]


def tools(asked):
    return [tool["function"]["name"] for tool in asked.get("tools", ())]


def results(asked):
    return [message["content"] for message in asked["messages"] if message["role"] == "tool"]


@pytest.fixture
def beast():
    return ScriptedNeuron(SMALL, LARGE, script=lambda _: ANSWER)


@pytest.fixture
async def cortex(tmp_path, beast):
    async with running_gateway(tmp_path, [beast]) as running:
        yield running


@pytest.fixture
def user(tmp_path, cortex):
    """At a desk with nothing on it."""
    return desk(tmp_path, cortex.url)


def named(agents):
    return pytest.mark.parametrize("agent", agents, ids=lambda agent: agent.name)


@named(AGENTS)
async def test_answer_is_what_the_model_said(cortex, beast, user, agent):
    """Streamed, by the alias of the settings, from the path where it is spoken as the agent speaks."""
    with structlog.testing.capture_logs() as logs:
        said = await user.run(agent, QUESTION)
        await until(lambda: not cortex.gateway.request_log.live)

    requests = [entry for entry in logs if entry["event"] == "request"]
    assert said.process.returncode == 0, said.text
    assert ANSWER in said.text
    assert {entry["path"] for entry in requests} == {agent.asks}
    assert {entry["outcome"] for entry in requests} == {"ok"}
    assert (LARGE, True) in {(request.model, request.stream) for request in beast.requests}


@named(READERS)
async def test_tool_is_run_and_the_model_told_its_result(beast, user, agent):
    """A file is read on the user's machine, and what it says is with the model in the next request."""
    notes = user.folder / "notes.txt"
    notes.write_text("The password is Mtkvari.\n")

    def script(asked):
        if not tools(asked):
            return "A title"
        return "I have read it." if results(asked) else reading(agent, notes)

    beast.script = script
    said = await user.run(agent, "What do the notes say?")

    assert "I have read it." in said.text
    [told] = results(beast.asked[-1])
    assert "The password is Mtkvari." in told


@named(AGENTS)
async def test_unknown_model_is_told_the_user(beast, user, agent):
    """By its name, without a second attempt."""
    said = await user.run(agent, QUESTION, *agent.unknown_model)

    assert UNKNOWN in said.text.replace("\n", "")
    assert "Traceback" not in said.text
    assert not [request for request in beast.requests if request.model == UNKNOWN]


@named([CLAUDE_CODE, CODEX, AIDER])
async def test_stream_that_breaks_off_is_asked_for_again(beast, user, agent):
    """None of them takes half an answer for one."""
    beast.faults.add(Drop(model=LARGE, after=5, times=1))
    said = await user.run(agent, QUESTION)

    assert said.process.returncode == 0, said.text
    assert ANSWER in said.text
    assert [request.model for request in beast.requests].count(LARGE) == 2


@named([OPENCODE, LLM])
async def test_stream_that_breaks_off_is_told(beast, user, agent):
    """These leave it to their user to ask again."""
    beast.faults.add(Drop(model=LARGE, after=5, times=1))
    said = await user.run(agent, QUESTION)

    assert said.process.returncode == 1
    assert "the neuron closed the connection in the middle of its response" in said.text


@named(AGENTS)
async def test_neuron_that_is_full_is_asked_later(beast, user, agent):
    """A 503 with Retry-After is no answer to give up on."""
    beast.faults.add(HttpError(model=LARGE, status=503, text="full", retry_after_s=1, times=1))
    said = await user.run(agent, QUESTION)

    assert said.process.returncode == 0, said.text
    assert ANSWER in said.text


@named(AGENTS)
async def test_interrupt_stops_the_neuron(cortex, beast, user, agent):
    """Ctrl-C at the agent, or whatever else ends it, frees the GPU."""
    beast.speed = 0.05  # an answer that nobody waits for
    async with user.running(agent, QUESTION) as said:
        await until(lambda: LARGE in {request.model for request in beast.requests})
        said.signal(signal.SIGINT)
        await until(lambda: LARGE in {cancelled.model for cancelled in beast.cancelled})

    await until(lambda: not cortex.gateway.request_log.live)
    assert_idle(cortex.gateway.fleet)


# Claude Code...


async def test_claude_code_asks_for_a_broken_stream_in_one_piece(beast, user):
    """The second time without `stream`."""
    beast.faults.add(Drop(model=LARGE, after=5, times=1))
    await user.run(CLAUDE_CODE, QUESTION)

    assert [request.stream for request in beast.requests if request.model == LARGE] == [True, False]


async def test_claude_code_compacts_a_conversation_that_has_become_too_long(beast, user):
    """It reads it in a neuron's words for that, has the model write a summary, and goes on from there."""
    told = "This model's maximum context length is 9000 tokens. However, you requested 9200 tokens."

    def script(asked):
        if "Respond with TEXT ONLY" in json.dumps(asked["messages"][-1]):
            return "<summary>We have counted.</summary>"
        if "We have counted." in json.dumps(asked["messages"]):
            return "Summed up."
        if len(results(asked)) == 1:
            beast.faults.add(HttpError(model=LARGE, status=400, text=told, times=1))
        return Call("Bash", {"command": "seq 2000", "description": "count"})

    beast.script = script
    said = await user.run(CLAUDE_CODE, "Count.")

    assert '"compact_result":"success"' in said.text
    assert "Summed up." in said.text


async def test_claude_code_counts_tokens_and_knows_the_window(cortex, beast, user):
    """`/context` asks us for every part of a prompt, and the settings say how much there is."""
    with structlog.testing.capture_logs() as logs:
        said = await user.run(CLAUDE_CODE, "/context")

    counted = [entry for entry in logs if entry["event"] == "request"]
    assert "131.1k" in said.text
    assert len(counted) > 5
    assert {(entry["path"], entry["status"]) for entry in counted} == {("/v1/messages/count_tokens", 200)}


WEATHER_SERVER = SCENES / "programs" / "weather_server.py"


async def test_claude_code_finds_a_tool_for_later(beast, user):
    """An MCP server's tool is offered once the model has searched for it, behind the others; a placeholder never."""
    weather = "mcp__scene__weather"

    def script(asked):
        match results(asked):
            case []:
                return Call("ToolSearch", {"query": f"select:{weather}"})
            case [_]:
                return Call(weather, {"city": "Tbilisi"})
            case [*_, last]:
                return f"It is {last} in Tbilisi."

    beast.script = script
    server = {"command": sys.executable, "args": [str(WEATHER_SERVER)]}
    said = await user.run(CLAUDE_CODE, "Weather?", "--mcp-config", json.dumps({"mcpServers": {"scene": server}}))

    assert "It is sunny in Tbilisi." in said.text
    first, second, third = map(tools, beast.asked)
    assert "DeferredToolPlaceholder" not in first
    assert weather not in first
    assert second == third == [*first, weather]


# aider...

EDITS = {
    "whole": """hello.py
```
print('Hello, Tbilisi')
```
""",
    "diff": """hello.py
```
<<<<<<< SEARCH
print('Hello')
=======
print('Hello, Tbilisi')
>>>>>>> REPLACE
```
""",
}


@pytest.mark.parametrize("streamed", ["--stream", "--no-stream"])
@pytest.mark.parametrize("edit_format", EDITS)
async def test_aider_applies_and_commits_what_the_model_writes(beast, user, streamed, edit_format):
    """The file is edited, and the small model has written the commit's message."""
    beast.script = lambda asked: EDITS[edit_format] if asked["model"] == LARGE else "feat: greet Tbilisi"
    hello = user.folder / "hello.py"
    hello.write_text("print('Hello')\n")
    git = ["git", "-C", str(user.folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        await trio.run_process([*git, *command])

    said = await user.run(AIDER, "Greet Tbilisi.", "--edit-format", edit_format, streamed, "hello.py")

    assert "print('Hello, Tbilisi')" in hello.read_text(), said.text
    log = await trio.run_process([*git, "log", "--format=%s"], capture_stdout=True)
    assert log.stdout.decode().splitlines() == ["feat: greet Tbilisi", "first"]
    assert [request.stream for request in beast.requests if request.model == LARGE] == [streamed == "--stream"]


# llm...


async def test_llm_calls_a_tool_of_its_own(beast, user):
    """And the model is told what came of it."""
    beast.script = lambda asked: " ".join(["Version", *results(asked)]) if results(asked) else Call("llm_version", {})
    said = await user.run(LLM, "Which version?", "-T", "llm_version")

    [version] = results(beast.asked[-1])
    assert f"Version {version}" in said.text
