"""A prompt that cannot fit, with the SDK of every dialect, on real sockets."""

import anthropic
import httpx
import openai
import pytest
import trio
from fakes.running import SMALL, running_gateway

TOO_LONG = "word " * 33_000  # the simulated model takes 32,768 tokens
NUMBERS = "maximum context length is 32768 tokens"


async def test_openai_sdk_raises_bad_request(cortex, beast):
    """Chat and Responses, streamed or not; no neuron gets a request."""

    def script():
        with openai.OpenAI(base_url=f"{cortex.url}/v1", api_key="k", max_retries=0) as client:
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError, match=NUMBERS) as chat:
                    client.chat.completions.create(
                        model="helexa/small", messages=[{"role": "user", "content": TOO_LONG}], stream=stream
                    )
                with pytest.raises(openai.BadRequestError, match=NUMBERS) as responses:
                    client.responses.create(model=SMALL, input=TOO_LONG, stream=stream)
                assert chat.value.code == responses.value.code == "context_length_exceeded"

    await trio.to_thread.run_sync(script)
    assert not beast.requests


async def test_anthropic_sdk_raises_the_bad_request_that_makes_agents_compact(cortex, beast):
    """`prompt is too long`, and the numbers."""

    def script():
        client = anthropic.Anthropic(base_url=cortex.url, api_key="k", max_retries=0)
        with client, pytest.raises(anthropic.BadRequestError, match=f"prompt is too long.*{NUMBERS}"):
            client.messages.create(model="helexa/small", max_tokens=9, messages=[{"role": "user", "content": TOO_LONG}])

    await trio.to_thread.run_sync(script)
    assert not beast.requests


async def test_neurons_own_limit_counts_too(tmp_path, beast):
    """`max_prompt_tokens` of its discovery, whatever the model could take; below it the neuron decides."""
    beast.max_prompt_tokens = 2_000
    async with (
        running_gateway(tmp_path, [beast]) as cortex,
        httpx.AsyncClient(base_url=cortex.url, trust_env=False, timeout=60) as http,
    ):
        prompts = [{"role": "user", "content": "word " * count} for count in (1_000, 1_999, 2_001)]
        fits, between, too_long = [
            await http.post("/v1/chat/completions", json={"model": SMALL, "messages": [prompt], "max_tokens": 1})
            for prompt in prompts
        ]

    assert fits.status_code == 200
    assert "exceeds the context length of 2000" in between.text
    assert too_long.json()["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 2000 tokens" in too_long.json()["error"]["message"]
    assert len(beast.requests) == 2
