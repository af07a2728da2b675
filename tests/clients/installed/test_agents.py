"""Coding agents from npm and PyPI, unmodified, with the settings of docs/clients.md, and scripted answers.

The scenes: an answer, a tool call with its result, an unknown model, a stream that breaks, a full neuron, and Ctrl-C.
Tests of single agents follow.
"""

import json
import signal
import sys

import pytest
import structlog
import trio
from fakes.agents import AGENTS, AIDER, CLAUDE_CODE, CODEX, LLM, OPENCODE, UNKNOWN, agent_runner, read_call
from fakes.fleets import assert_idle
from fakes.patience import until
from fakes.running import LARGE, SMALL, running_gateway
from fakes.scene import SCENES
from fakes.scripted_model import Call, ScriptedNeuron

from neuron.simulated.faults import Drop, HttpError

ANSWER = "The capital of Georgia is Tbilisi, on the Mtkvari."
QUESTION = "What is the capital of Georgia?"
READERS = [CLAUDE_CODE, CODEX, OPENCODE]


def tools(request_body):
    return [tool["function"]["name"] for tool in request_body.get("tools", ())]


def results(request_body):
    return [message["content"] for message in request_body["messages"] if message["role"] == "tool"]


@pytest.fixture
def beast():
    return ScriptedNeuron(SMALL, LARGE, script=lambda _: ANSWER)


@pytest.fixture
async def cortex(tmp_path, beast):
    async with running_gateway(tmp_path, [beast]) as running:
        yield running


@pytest.fixture
def user(tmp_path, cortex):
    """A runner with empty folders."""
    return agent_runner(tmp_path, cortex.url)


def named(agents):
    return pytest.mark.parametrize("agent", agents, ids=lambda agent: agent.name)


@named(AGENTS)
async def test_answer_is_the_models(cortex, beast, user, agent):
    """Streamed, by the alias of the settings, from the path of the agent's API."""
    with structlog.testing.capture_logs() as logs:
        output = await user.run(agent, QUESTION)
        await until(lambda: not cortex.gateway.request_log.live)

    requests = [entry for entry in logs if entry["event"] == "request"]
    assert output.process.returncode == 0, output.text
    assert ANSWER in output.text
    assert {entry["path"] for entry in requests} == {agent.api_path}
    assert {entry["outcome"] for entry in requests} == {"ok"}
    assert (LARGE, True) in {(request.model, request.stream) for request in beast.requests}


@named(READERS)
async def test_tool_is_run_and_the_model_gets_its_result(beast, user, agent):
    """The agent reads a file on the user's machine, and its next request has the content."""
    notes = user.folder / "notes.txt"
    notes.write_text("The password is Mtkvari.\n")

    def script(request_body):
        if not tools(request_body):
            return "A title"
        return "I have read it." if results(request_body) else read_call(agent, notes)

    beast.script = script
    output = await user.run(agent, "What do the notes say?")

    assert "I have read it." in output.text
    [result] = results(beast.chat_requests[-1])
    assert "The password is Mtkvari." in result


@named(AGENTS)
async def test_unknown_model_is_reported_to_the_user(beast, user, agent):
    """By its name, without a second attempt."""
    output = await user.run(agent, QUESTION, *agent.unknown_model)

    assert UNKNOWN in output.text.replace("\n", "")
    assert "Traceback" not in output.text
    assert not [request for request in beast.requests if request.model == UNKNOWN]


@named([CLAUDE_CODE, CODEX, AIDER])
async def test_broken_stream_is_requested_again(beast, user, agent):
    """None of these agents takes half an answer for a whole one."""
    beast.faults.add(Drop(model=LARGE, after=5, times=1))
    output = await user.run(agent, QUESTION)

    assert output.process.returncode == 0, output.text
    assert ANSWER in output.text
    assert [request.model for request in beast.requests].count(LARGE) == 2


@named([OPENCODE, LLM])
async def test_broken_stream_is_reported_to_the_user(beast, user, agent):
    """These leave a retry to their user."""
    beast.faults.add(Drop(model=LARGE, after=5, times=1))
    output = await user.run(agent, QUESTION)

    assert output.process.returncode == 1
    assert "the neuron closed the connection in the middle of its response" in output.text


@named(AGENTS)
async def test_full_neuron_is_retried(beast, user, agent):
    """After a 503 with Retry-After."""
    beast.faults.add(HttpError(model=LARGE, status=503, text="full", retry_after_s=1, times=1))
    output = await user.run(agent, QUESTION)

    assert output.process.returncode == 0, output.text
    assert ANSWER in output.text


@named(AGENTS)
async def test_interrupt_stops_the_neuron(cortex, beast, user, agent):
    """Ctrl-C in the agent frees the GPU."""
    beast.speed = 0.05  # the answer does not end during the test
    async with user.running(agent, QUESTION) as output:
        await until(lambda: LARGE in {request.model for request in beast.requests})
        output.signal(signal.SIGINT)
        await until(lambda: LARGE in {cancelled.model for cancelled in beast.cancelled})

    await until(lambda: not cortex.gateway.request_log.live)
    assert_idle(cortex.gateway.fleet)


# Claude Code ........................................................................................................


async def test_claude_code_repeats_a_broken_stream_without_stream(beast, user):
    """The second request has no `stream`."""
    beast.faults.add(Drop(model=LARGE, after=5, times=1))
    await user.run(CLAUDE_CODE, QUESTION)

    assert [request.stream for request in beast.requests if request.model == LARGE] == [True, False]


async def test_claude_code_compacts_a_conversation_that_has_become_too_long(beast, user):
    """It recognises the neuron's error message, has the model write a summary, and continues from there."""
    result = "This model's maximum context length is 9000 tokens. However, you requested 9200 tokens."

    def script(request_body):
        if "Respond with TEXT ONLY" in json.dumps(request_body["messages"][-1]):
            return "<summary>We have counted.</summary>"
        if "We have counted." in json.dumps(request_body["messages"]):
            return "Summed up."
        if len(results(request_body)) == 1:
            beast.faults.add(HttpError(model=LARGE, status=400, text=result, times=1))
        return Call("Bash", {"command": "seq 2000", "description": "count"})

    beast.script = script
    output = await user.run(CLAUDE_CODE, "Count.")

    assert '"compact_result":"success"' in output.text
    assert "Summed up." in output.text


async def test_claude_code_counts_tokens_and_knows_the_window(cortex, beast, user):
    """`/context` counts the tokens of every part of a prompt, and the settings have the context size."""
    with structlog.testing.capture_logs() as logs:
        output = await user.run(CLAUDE_CODE, "/context")

    counted = [entry for entry in logs if entry["event"] == "request"]
    assert "131.1k" in output.text
    assert len(counted) > 5
    assert {(entry["path"], entry["status"]) for entry in counted} == {("/v1/messages/count_tokens", 200)}


WEATHER_SERVER = SCENES / "programs" / "weather_server.py"


async def test_claude_code_finds_a_deferred_tool(beast, user):
    """An MCP server's tool is offered after the model has searched for it, after the others; a placeholder never is."""
    weather = "mcp__scene__weather"

    def script(request_body):
        match results(request_body):
            case []:
                return Call("ToolSearch", {"query": f"select:{weather}"})
            case [_]:
                return Call(weather, {"city": "Tbilisi"})
            case [*_, last]:
                return f"It is {last} in Tbilisi."

    beast.script = script
    server = {"command": sys.executable, "args": [str(WEATHER_SERVER)]}
    output = await user.run(CLAUDE_CODE, "Weather?", "--mcp-config", json.dumps({"mcpServers": {"scene": server}}))

    assert "It is sunny in Tbilisi." in output.text
    first, second, third = map(tools, beast.chat_requests)
    assert "DeferredToolPlaceholder" not in first
    assert weather not in first
    assert second == third == [*first, weather]


# aider ..............................................................................................................

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
async def test_aider_applies_and_commits_the_models_edit(beast, user, streamed, edit_format):
    """The file is edited, and the small model has written the commit's message."""
    beast.script = lambda request_body: EDITS[edit_format] if request_body["model"] == LARGE else "feat: greet Tbilisi"
    hello = user.folder / "hello.py"
    hello.write_text("print('Hello')\n")
    git = ["git", "-C", str(user.folder), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        await trio.run_process([*git, *command])

    output = await user.run(AIDER, "Greet Tbilisi.", "--edit-format", edit_format, streamed, "hello.py")

    assert "print('Hello, Tbilisi')" in hello.read_text(), output.text
    log = await trio.run_process([*git, "log", "--format=%s"], capture_stdout=True)
    assert log.stdout.decode().splitlines() == ["feat: greet Tbilisi", "first"]
    assert [request.stream for request in beast.requests if request.model == LARGE] == [streamed == "--stream"]


# llm ................................................................................................................


async def test_llm_calls_a_tool_of_its_own(beast, user):
    """And the model gets its result."""
    beast.script = lambda request_body: (
        " ".join(["Version", *results(request_body)]) if results(request_body) else Call("llm_version", {})
    )
    output = await user.run(LLM, "Which version?", "-T", "llm_version")

    [version] = results(beast.chat_requests[-1])
    assert f"Version {version}" in output.text
