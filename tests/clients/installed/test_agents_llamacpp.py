"""The coding agents call a tool through a real engine: llama.cpp's own server, of the extra `real`.

The model is made for each test (`scripted_weights`): it calls the agent's tool to read a file, and answers once the
result has the content of the file. The engine renders, samples and parses; the agents are as in test_agents.py.
"""

import pytest
import scripted_weights
import structlog
from fakes.agents import CLAUDE_CODE, CODEX, OPENCODE, agent_runner, read_call
from fakes.running import running_gateway, settled
from llamacpp import KEY, running

from gateway.config.settings import NeuronSettings

MODEL = "Tiny/Scripted"
ALIASES = f"""
[aliases]
"helexa/small" = "{MODEL}"
"helexa/large" = "{MODEL}"
"""
PASSWORD = "Mtkvari-1845"
ANSWER = "I have read the password in the notes."


@pytest.mark.parametrize("agent", [CLAUDE_CODE, CODEX, OPENCODE], ids=lambda agent: agent.name)
async def test_agent_runs_the_tool_that_a_real_engine_calls(tmp_path, agent):
    """By alias: the engine streams the call, the agent runs it, and the engine gets the result and answers."""
    notes = tmp_path / "project" / "notes.txt"
    call = read_call(agent, notes)
    model = tmp_path / "scripted.gguf"
    scripted_weights.make(model, call.name, call.arguments, expected=PASSWORD, answer=ANSWER)
    with running(model, "chat") as url, structlog.testing.capture_logs() as logs:
        engine = NeuronSettings("real", url, "openai", engine="llamacpp", api_key=KEY, serves={MODEL: "tiny"})
        async with running_gateway(tmp_path, [], models_toml=ALIASES, backends=(engine,)) as cortex:
            user = agent_runner(tmp_path, cortex.url)
            notes.write_text(f"The password is {PASSWORD}.\n")
            output = await user.run(agent, "What do the notes say?")
            await settled(cortex.gateway)

    requests = [entry for entry in logs if entry["event"] == "request" and entry["path"] == agent.api_path]
    call_turn, answer_turn = (entry for entry in requests if entry["alias"] == "helexa/large")
    assert output.process.returncode == 0, output.text
    assert ANSWER in output.text
    assert PASSWORD in output.text
    assert {(entry["node"], entry["outcome"], entry["stream"]) for entry in requests} == {("real", "ok", True)}
    assert call_turn["prompt_tokens"] < answer_turn["prompt_tokens"]
