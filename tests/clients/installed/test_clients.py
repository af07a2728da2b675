"""Clients from PyPI and npm, unmodified, each a process that runs what its users write (tests/clients/python and js).

Four scenes of each: a streamed chat by alias, a tool called and its result sent back, an error as the client's own
type, and a stream that is given up half-way, which the neuron must notice while the client's process lives on.
"""

import json

import pytest
import structlog
import trio
from fakes.fleets import assert_idle
from fakes.patience import until
from fakes.running import SMALL
from fakes.scene import playing

CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"

CLIENTS = {
    # name: script, environment, path it must have used, its type of a 404
    "openai": ("openai_client.py", {}, CHAT, "NotFoundError"),
    "anthropic": ("anthropic_client.py", {}, MESSAGES, "NotFoundError"),
    "litellm": ("litellm_client.py", {}, CHAT, "NotFoundError"),
    "litellm-anthropic": ("litellm_client.py", {"LITELLM_PROVIDER": "anthropic"}, MESSAGES, "NotFoundError"),
    "langchain-openai": ("langchain_openai_client.py", {}, CHAT, "OpenAIModelNotFoundError"),
    "langchain-responses": (
        "langchain_openai_client.py",
        {"LANGCHAIN_RESPONSES": "1"},
        RESPONSES,
        "OpenAIModelNotFoundError",
    ),
    "langchain-anthropic": ("langchain_anthropic_client.py", {}, MESSAGES, "AnthropicModelNotFoundError"),
    "pydantic-ai": ("pydantic_ai_client.py", {}, CHAT, "ModelHTTPError"),
    "pydantic-ai-responses": ("pydantic_ai_client.py", {"PYDANTIC_AI": "responses"}, RESPONSES, "ModelHTTPError"),
    "pydantic-ai-anthropic": ("pydantic_ai_client.py", {"PYDANTIC_AI": "anthropic"}, MESSAGES, "ModelHTTPError"),
    "openai-agents": ("openai_agents_client.py", {}, RESPONSES, "NotFoundError"),
    "openai-agents-chat": ("openai_agents_client.py", {"OPENAI_AGENTS": "chat"}, CHAT, "NotFoundError"),
    "instructor": ("instructor_client.py", {}, CHAT, "InstructorRetryException"),
    "js-openai": ("openai.mjs", {}, CHAT, "NotFoundError"),
    "js-anthropic": ("anthropic.mjs", {}, MESSAGES, "NotFoundError"),
    "js-ai-openai-compatible": ("ai.mjs", {}, CHAT, "APICallError"),
    "js-ai-anthropic": ("ai.mjs", {"AI_PROVIDER": "anthropic"}, MESSAGES, "APICallError"),
}


@pytest.fixture(params=CLIENTS.values(), ids=CLIENTS.keys())
def client(request):
    return request.param


async def test_stream_by_alias_comes_in_pieces(cortex, beast, client):
    """As many as the client cares to tell apart, and more than one."""
    script, env, path, _ = client
    with structlog.testing.capture_logs() as logs:
        async with playing(script, "chat", cortex.url, **env) as seen:
            pieces = seen["pieces"]
        await until(lambda: not cortex.gateway.request_log.live)

    assert [entry["path"] for entry in logs if entry["event"] == "request"] == [path]
    assert len(pieces) > 1
    assert "Tbilisi" in "".join(pieces)
    assert (beast.requests[-1].model, beast.requests[-1].stream) == (SMALL, True)


async def test_tool_is_called_and_told_its_result(cortex, beast, client):
    """The call as the client's own object, with arguments that fit the schema; its result is in the next request."""
    script, env, _, _ = client
    async with playing(script, "tools", cortex.url, **env) as seen:
        arguments = seen["arguments"] if isinstance(seen["arguments"], dict) else json.loads(seen["arguments"])

    assert seen["name"] in {"weather", "Capital"}
    assert arguments["city"] == "Tbilisi"
    if seen["text"] is not None:  # a client that calls tools for the sake of their arguments sends no result
        last = json.loads(beast.requests[-1].body)["messages"][-1]
        assert (last["role"], last["content"]) == ("tool", "sunny")
        assert seen["text"]


async def test_error_is_the_client_s_own(cortex, client):
    """By type and status, with our words in it."""
    script, env, _, kind = client
    async with playing(script, "error", cortex.url, **env) as seen:
        pass

    assert (seen["type"], seen["status"]) == (kind, 404)
    assert "nobody/has-it" in seen["message"]


async def test_stream_given_up_stops_the_neuron(cortex, beast, client):
    """While the process that asked lives on."""
    script, env, _, _ = client
    beast.speed = 3
    live = cortex.gateway.request_log.live

    async def drag_on():
        """From its first word on it has all the time in the world, and so does the client to give it up."""
        await until(lambda: any(record.answer.meter and record.answer.meter.generated for record in live.values()))
        beast.speed = 0.05

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drag_on)
        async with playing(script, "abort", cortex.url, **env):
            await until(lambda: beast.cancelled)
            await until(lambda: not live)

    assert beast.cancelled[0].phase == "decode"
    assert_idle(cortex.gateway.fleet)


async def test_responses_of_the_js_sdk(cortex):
    """Accumulated by its own reader."""
    async with playing("openai.mjs", "responses", cortex.url) as seen:
        assert "Tbilisi" in "".join(seen["pieces"])


async def test_embeddings_of_langchain(cortex):
    """Text goes out as text."""
    async with playing("langchain_openai_client.py", "embed", cortex.url) as seen:
        assert seen["lengths"] == [1024, 1024]
