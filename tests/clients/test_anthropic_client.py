"""The official `anthropic` SDK, unmodified: what tests/e2e/test_anthropic.py does not cover."""

import json

import anthropic
import pytest
import trio
from anthropic import Anthropic, AsyncAnthropic
from fakes.fleets import assert_idle
from fakes.patience import until
from fakes.running import PROBE, SMALL

from neuron.simulated import faults

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator:pytest.PytestUnraisableExceptionWarning"),
]

WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
TIME = {"name": "time", "input_schema": {"type": "object", "properties": {}}}
THINKER = "Qwen/Qwen3-14B"
ASK = {"model": "helexa/small", "max_tokens": 5000, "messages": PROBE}


def user(content):
    return {"role": "user", "content": content}


def async_client(cortex):
    return AsyncAnthropic(base_url=cortex.url, api_key="none", max_retries=0, timeout=60)


async def in_thread(cortex, use):
    """The sync SDK, as in a script."""

    def script():
        with Anthropic(base_url=cortex.url, api_key="none", max_retries=0, timeout=60) as client:
            return use(client)

    return await trio.to_thread.run_sync(script)


def sent(beast, index=-1):
    return json.loads(beast.requests[index].body)


async def test_create_and_stream_of_the_async_sdk(cortex):
    """The same text and usage either way."""
    async with async_client(cortex) as client:
        whole = await client.messages.create(**ASK)
        async with client.messages.stream(**ASK) as stream:
            pieces = [piece async for piece in stream.text_stream]
            final = await stream.get_final_message()

    assert "".join(pieces) == whole.content[0].text == final.content[0].text
    assert len(pieces) > 1
    assert (whole.stop_reason, whole.usage.output_tokens) == (final.stop_reason, final.usage.output_tokens)


async def test_parallel_tools_make_a_round_trip(cortex, beast):
    """Streamed. The results go back with the model's message, one of them an error, and an answer comes."""
    arguments = {**ASK, "messages": [user("call weather and call time")], "tools": [WEATHER, TIME]}
    async with async_client(cortex) as client:
        async with client.messages.stream(**arguments) as stream:
            first = await stream.get_final_message()
        calls = [block for block in first.content if block.type == "tool_use"]
        results = [
            {"type": "tool_result", "tool_use_id": calls[0].id, "content": [{"type": "text", "text": "sunny"}]},
            {"type": "tool_result", "tool_use_id": calls[1].id, "content": "no clock", "is_error": True},
        ]
        arguments["messages"] += [{"role": "assistant", "content": first.content}, user(results)]
        second = await client.messages.create(**arguments)

    assert first.stop_reason == "tool_use"
    assert [(call.name, call.input) for call in calls] == [("weather", {"city": "Tbilisi"}), ("time", {})]
    got = sent(beast)["messages"]
    assert [message["role"] for message in got] == ["user", "assistant", "tool", "tool"]
    assert [call["id"] for call in got[1]["tool_calls"]] == [message["tool_call_id"] for message in got[2:]]
    assert got[: len(sent(beast, 0)["messages"])] == sent(beast, 0)["messages"]
    assert second.stop_reason == "end_turn"


async def test_tool_choice_forces_or_forbids_a_call(cortex):
    """`any` and `tool` make the model call one, `none` forbids it."""

    def use(client):
        choices = [{"type": "any"}, {"type": "tool", "name": "time"}, {"type": "none"}]
        answers = [client.messages.create(**ASK, tools=[WEATHER, TIME], tool_choice=choice) for choice in choices]
        return [[getattr(block, "name", block.type) for block in answer.content] for answer in answers]

    assert await in_thread(cortex, use) == [["weather"], ["time"], ["text"]]


async def test_thinking_comes_as_signed_blocks_and_goes_back(cortex, beast):
    """Whole and streamed; the next turn is accepted with the blocks in it, and extends the previous one."""
    arguments = {**ASK, "model": THINKER, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    async with async_client(cortex) as client:
        async with client.messages.stream(**arguments) as stream:
            kinds = [event.type async for event in stream]
            streamed = await stream.get_final_message()
        whole = await client.messages.create(**arguments)
        arguments["messages"] = [
            *PROBE,
            {"role": "assistant", "content": streamed.content},
            user("What is the capital of France?"),
        ]
        second = await client.messages.create(**arguments)

    assert [block.type for block in streamed.content] == [block.type for block in whole.content] == ["thinking", "text"]
    assert streamed.content[0].thinking == whole.content[0].thinking
    assert streamed.content[0].signature
    assert "signature" in kinds
    assert "Paris" in second.content[-1].text
    assert sent(beast)["messages"][:1] == sent(beast, 0)["messages"]


async def test_thinking_is_off_by_default(cortex):
    """For a model that reasons by default."""

    def use(client):
        return client.messages.create(**ASK | {"model": THINKER}, thinking={"type": "disabled"})

    assert [block.type for block in (await in_thread(cortex, use)).content] == ["text"]


async def test_stop_sequence_and_limit_are_reported(cortex):
    """In `stop_reason`."""

    def use(client):
        limited = client.messages.create(**ASK | {"max_tokens": 3, "messages": [user("300 words")]})
        return limited.stop_reason, limited.usage.output_tokens

    assert await in_thread(cortex, use) == ("max_tokens", 3)


async def test_tokens_are_counted_sync_and_async(cortex):
    """The same number; more text has more tokens."""
    arguments = {"model": "helexa/small", "messages": PROBE}
    one = await in_thread(cortex, lambda client: client.messages.count_tokens(**arguments))
    async with async_client(cortex) as client:
        same = await client.messages.count_tokens(**arguments)
        more = await client.messages.count_tokens(**arguments, tools=[WEATHER], system="Be brief.")

    assert one.input_tokens == same.input_tokens > 0
    assert more.input_tokens > same.input_tokens


@pytest.mark.parametrize(
    ("fault", "raised", "kind"),
    [
        (faults.HttpError(status=400, text="no"), anthropic.BadRequestError, "invalid_request_error"),
        (faults.HttpError(status=403, text="no"), anthropic.PermissionDeniedError, "permission_error"),
        (faults.HttpError(status=413, text="no"), anthropic.RequestTooLargeError, "request_too_large"),
        (faults.HttpError(status=429, text="no", retry_after_s=3), anthropic.RateLimitError, "rate_limit_error"),
        (faults.HttpError(status=503, text="no", retry_after_s=2), anthropic.APIStatusError, "overloaded_error"),
        (faults.HttpError(status=500, text="no"), anthropic.InternalServerError, "api_error"),
    ],
    ids=lambda value: getattr(value, "status", None),
)
async def test_refusal_of_a_neuron_is_the_sdks_own_exception(cortex, beast, fault, raised, kind):
    """With Anthropic's type for it, the neuron's message, its Retry-After and the request's id."""
    beast.faults.add(fault)
    async with async_client(cortex) as client:
        with pytest.raises(raised, match="no") as caught:
            await client.messages.create(**ASK)

    error = caught.value
    assert (error.status_code, error.body["error"]["type"]) == (fault.status, kind)
    assert error.request_id == error.body["request_id"]
    retry_after = None if fault.retry_after_s is None else str(fault.retry_after_s)
    assert error.response.headers.get("retry-after") == retry_after


async def test_key_that_a_neuron_refuses_is_not_the_clients_mistake_for_anthropic(cortex, beast):
    """The neuron's 401 is about the gateway's key: a 502, so that no client asks its user for another key."""
    beast.faults.add(faults.HttpError(status=401, text="no"))
    async with async_client(cortex) as client:
        with pytest.raises(anthropic.InternalServerError, match="the operator must correct its api_key") as caught:
            await client.messages.create(**ASK)

    assert (caught.value.status_code, caught.value.body["error"]["type"]) == (502, "api_error")
    assert caught.value.request_id == caught.value.body["request_id"]


async def test_abort_sync_and_async_stops_the_neuron(cortex, beast):
    """Leaving the `with` is enough, while the client itself lives on."""
    beast.speed = 2
    arguments = {**ASK, "model": SMALL, "messages": [user("4000 words")]}

    def use(client):
        with client.messages.stream(**arguments) as stream:
            next(iter(stream.text_stream))
        trio.from_thread.run(until, lambda: len(beast.cancelled) == 1)

    await in_thread(cortex, use)
    async with async_client(cortex) as client:
        async with client.messages.stream(**arguments) as stream:
            await anext(aiter(stream.text_stream))
        await until(lambda: len(beast.cancelled) == 2)

    assert {gone.phase for gone in beast.cancelled} == {"decode"}
    await until(lambda: not cortex.gateway.request_log.live)
    assert_idle(cortex.gateway.fleet)
