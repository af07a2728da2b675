"""Usage of every request: reported by the neuron, requested by cortex, or marked as an estimate."""

import gc
import json

import httpx
import pytest
import trio
from fakes.engine import SimEngine, an_engine_gateway, counted
from fakes.patience import SAFETY_NET_S
from openai import AsyncOpenAI
from structlog.testing import capture_logs

from neuron.simulated import PROBE, faults

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = [
    pytest.mark.usefixtures("fresh_loggers"),
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
]
SMALL = "Qwen/Qwen3-1.7B"
THINKER = "Qwen/Qwen3-14B"
ROUTE = f'{{model="{SMALL}",node="box"}}'
ASKED = {"stream_options": {"include_usage": True}}


@pytest.fixture
def engine():
    return SimEngine(SMALL)


def question(**more):
    return {"model": SMALL, "messages": [{"role": "user", "content": PROBE}], "stream": True} | more


def sent(engine):
    """The engine's request, as JSON."""
    return [json.loads(received.body) for received in engine.requests]


async def stream_text(url, body, path="/v1/chat/completions"):
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=SAFETY_NET_S) as http:
        return (await http.post(path, content=body if isinstance(body, bytes) else json.dumps(body))).text


def chunks(text):
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


@pytest.mark.parametrize("name", ["vllm", "sglang", "llamacpp", "ollama", "lmstudio", "tabbyapi"])
async def test_usage_is_requested_from_the_engine_and_hidden_from_the_client(engine, name):
    """The client gets the bytes that the engine alone would have sent; the gateway gets the numbers."""
    async with an_engine_gateway(engine, engine=name) as (gateway, url):
        events_text = await stream_text(url, question())
        await counted(gateway, f"cortex_prompt_tokens_total{ROUTE} 20.0")
        metrics = gateway.metrics.expose().decode()
    engine.reset()
    async with an_engine_gateway(engine) as (_, url):
        unasked = await stream_text(url, question())

    assert events_text == unasked
    assert "usage" not in events_text
    assert events_text.endswith("data: [DONE]\n\n")
    assert f"cortex_completion_tokens_total{ROUTE} 2.0" in metrics
    assert "estimated" not in metrics


async def test_only_the_usage_option_is_added(engine):
    """The rest of the body is unchanged, except for the engine's own name of the model."""
    body = b'{"stream": true,"model":"ours" ,"temperature":1.0,"messages":[{"role":"user","content":"repeat: x"}]}'
    async with an_engine_gateway(engine, engine="vllm", serves={"ours": SMALL}) as (_, url):
        await stream_text(url, body)

    (received,) = engine.requests
    expected = body.replace(b'"ours"', json.dumps(SMALL).encode())
    assert received.body == b'{"stream_options":{"include_usage":true},' + expected[1:]


@pytest.mark.parametrize("options", [ASKED, {"stream_options": {"include_usage": False}}])
async def test_clients_own_usage_option_wins(engine, options):
    """It gets the chunk or not, as it chose; its body is unchanged."""
    async with an_engine_gateway(engine, engine="vllm") as (_, url):
        events_text = chunks(await stream_text(url, question(**options)))

    assert sent(engine) == [question(**options)]
    assert [chunk["usage"]["completion_tokens"] for chunk in events_text if "usage" in chunk] == (
        [2] if options == ASKED else []
    )


async def test_other_stream_options_are_kept(engine):
    """The usage option is merged, and the chunk is removed."""
    async with an_engine_gateway(engine, engine="vllm") as (_, url):
        events_text = await stream_text(url, question(stream_options={"continuous_usage_stats": False}))

    assert sent(engine)[0]["stream_options"] == {"include_usage": True, "continuous_usage_stats": False}
    assert "usage" not in events_text


async def test_usage_of_completions_is_requested_too(engine):
    """They stream in the same way."""
    body = {"model": SMALL, "prompt": PROBE, "stream": True}
    async with an_engine_gateway(engine, engine="vllm") as (gateway, url):
        events_text = await stream_text(url, body, "/v1/completions")
        await counted(gateway, f"cortex_completion_tokens_total{ROUTE} 2.0")

    assert sent(engine)[0] == body | ASKED
    assert "usage" not in events_text


@pytest.mark.parametrize(
    ("keys", "body"),
    [
        ({}, question()),
        ({"engine": "transformers"}, question()),
        ({"engine": "vllm", "ask_usage": False}, question()),
        ({"engine": "vllm"}, question(stream=False)),
    ],
)
async def test_usage_is_not_requested_if_unsupported_or_unneeded(engine, keys, body):
    """An unknown engine, one that refuses unknown fields, one with `ask_usage = false`; an answer without a stream."""
    raw = json.dumps(body, indent=1).encode()
    async with an_engine_gateway(engine, **keys) as (_, url):
        await stream_text(url, raw)

    assert [received.body for received in engine.requests] == [raw]


@pytest.mark.parametrize("where", ["finish", "choices"])
async def test_usage_in_a_chunk_with_choices_stays(engine, where):
    """The engine sends it so by itself."""
    engine.faults.add(faults.OddUsage(where=where))
    async with an_engine_gateway(engine, engine="vllm") as (gateway, url):
        events_text = chunks(await stream_text(url, question()))
        await counted(gateway, f"cortex_completion_tokens_total{ROUTE} 2.0")

    assert [bool(chunk["choices"]) for chunk in events_text if "usage" in chunk] == [True]


async def test_usage_of_an_engine_without_usage_is_estimated_and_marked(engine):
    """In the log, and in a metric of its own, so that an estimate does not look like a count."""
    engine.faults.add(faults.OddUsage(where="none"))
    with capture_logs() as logs:
        async with an_engine_gateway(engine, engine="vllm") as (gateway, url):
            await stream_text(url, question())
            await counted(gateway, f"cortex_estimated_completion_tokens_total{ROUTE} 2.0")
            metrics = gateway.metrics.expose().decode()

    assert "cortex_completion_tokens_total" not in metrics
    (event,) = [entry for entry in logs if entry["event"] == "request"]
    assert (event["completion_tokens"], event["tokens_estimated"], event["prompt_tokens"]) == (2, True, None)


async def test_usage_of_a_broken_stream_is_estimated(engine):
    """The pieces that arrived were generated; the option does not change how a stream fails."""
    engine.faults.add(faults.Drop(after=2))
    async with an_engine_gateway(engine, engine="vllm") as (gateway, url):
        events_text = await stream_text(url, question())
        await counted(gateway, f"cortex_estimated_completion_tokens_total{ROUTE} 1.0")

    assert "upstream_connection_error" in events_text.splitlines()[-2]
    assert "[DONE]" not in events_text


async def test_reasoning_tokens_are_counted():
    """`reasoning_tokens`, in the log and as a metric."""
    engine = SimEngine(THINKER)
    with capture_logs() as logs:
        async with an_engine_gateway(engine, engine="vllm") as (gateway, url):
            await stream_text(url, question(model=THINKER))
            with trio.fail_after(SAFETY_NET_S):
                while "cortex_reasoning_tokens_total" not in gateway.metrics.expose().decode():
                    await trio.sleep(0.005)

    (event,) = [entry for entry in logs if entry["event"] == "request"]
    assert 0 < event["reasoning_tokens"] < event["completion_tokens"]
    assert event["tokens_estimated"] is False


async def test_official_sdk_does_not_notice(engine):
    """No chunk without choices, unless the client asks for it."""
    async with (
        an_engine_gateway(engine, engine="vllm") as (_, url),
        AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client,
    ):
        plain = [chunk async for chunk in await client.chat.completions.create(**question())]
        with_usage = [chunk async for chunk in await client.chat.completions.create(**question(**ASKED))]

    assert all(chunk.choices and chunk.usage is None for chunk in plain)
    assert with_usage[-1].choices == []
    assert with_usage[-1].usage.completion_tokens == 2
    assert [chunk.choices for chunk in with_usage[:-1]] == [chunk.choices for chunk in plain]
    gc.collect()  # in this test, where the warning is ignored
