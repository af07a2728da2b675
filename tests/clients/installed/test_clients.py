"""Clients from PyPI and npm, unmodified, each a process that runs typical user code (tests/clients/python and js).

Four scenes for each: a streamed chat by alias, a tool call with its result, an error as the client's own type, and a
stream that the client abandons half-way, which the neuron must notice while the client's process still runs.
"""

import json

import pytest
import structlog
import trio
from fakes.fleets import assert_idle
from fakes.patience import until
from fakes.running import SMALL
from fakes.scene import running_scene

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
    """More than one, in whatever units the client reports."""
    script, env, path, _ = client
    with structlog.testing.capture_logs() as logs:
        async with running_scene(script, "chat", cortex.url, **env) as seen:
            pieces = seen["pieces"]
        await until(lambda: not cortex.gateway.request_log.live)

    assert [entry["path"] for entry in logs if entry["event"] == "request"] == [path]
    assert len(pieces) > 1
    assert "Tbilisi" in "".join(pieces)
    assert (beast.requests[-1].model, beast.requests[-1].stream) == (SMALL, True)


async def test_tool_is_called_and_the_model_gets_its_result(cortex, beast, client):
    """The call is the client's own object, with arguments that fit the schema; its result is in the next request."""
    script, env, _, _ = client
    async with running_scene(script, "tools", cortex.url, **env) as seen:
        arguments = seen["arguments"] if isinstance(seen["arguments"], dict) else json.loads(seen["arguments"])

    assert seen["name"] in {"weather", "Capital"}
    assert arguments["city"] == "Tbilisi"
    if seen["text"] is not None:  # a client that only wants the arguments sends no result
        last = json.loads(beast.requests[-1].body)["messages"][-1]
        assert (last["role"], last["content"]) == ("tool", "sunny")
        assert seen["text"]


async def test_error_is_the_client_s_own(cortex, client):
    """By type and status, with the gateway's message."""
    script, env, _, kind = client
    async with running_scene(script, "error", cortex.url, **env) as seen:
        pass

    assert (seen["type"], seen["status"]) == (kind, 404)
    assert "nobody/has-it" in seen["message"]


async def test_abandoned_stream_stops_the_neuron(cortex, beast, client):
    """While the client's process still runs."""
    script, env, _, _ = client
    beast.speed = 3
    live = cortex.gateway.request_log.live

    async def slow_down_after_first_token():
        """From the first token on the stream lasts for ever, so that the client has time to abandon it."""
        await until(lambda: any(record.answer.meter and record.answer.meter.generated for record in live.values()))
        beast.speed = 0.05

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow_down_after_first_token)
        async with running_scene(script, "abort", cortex.url, **env):
            await until(lambda: beast.cancelled)
            await until(lambda: not live)

    assert beast.cancelled[0].phase == "decode"
    assert_idle(cortex.gateway.fleet)


async def test_responses_of_the_js_sdk(cortex):
    """Accumulated by its own reader."""
    async with running_scene("openai.mjs", "responses", cortex.url) as seen:
        assert "Tbilisi" in "".join(seen["pieces"])


async def test_embeddings_of_langchain(cortex):
    """Text is sent as text."""
    async with running_scene("langchain_openai_client.py", "embed", cortex.url) as seen:
        assert seen["lengths"] == [1024, 1024]
