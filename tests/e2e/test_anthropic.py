"""`/v1/messages` through the gateway on real sockets: the unmodified `anthropic` SDK, and what the neuron got."""

import json

import anthropic
import pytest
import trio
from fakes.running import PROBE, SMALL

from gateway.sim import faults

ASK = {"model": "helexa/small", "max_tokens": 64, "messages": PROBE}


@pytest.fixture
def sdk(cortex):
    return anthropic.Anthropic(base_url=cortex.url, api_key="a-client's-own", max_retries=0)


def in_thread(call):
    """The sync SDK blocks; the gateway runs in this thread."""
    return trio.to_thread.run_sync(call)


async def test_create_answers_in_anthropic_form(sdk, beast):
    """Text, usage and ids; the neuron was asked for a chat completion, by its own name, without the client's key."""
    answer = await in_thread(lambda: sdk.messages.with_raw_response.create(**ASK, system="Be brief."))
    message = answer.parse()

    assert "Tbilisi" in message.content[0].text
    assert (message.stop_reason, message.usage.output_tokens > 0) == ("end_turn", True)
    assert answer.headers["request-id"] == answer.headers["x-request-id"]
    assert answer.headers["x-cortex-model"] == SMALL
    [received] = beast.requests
    assert received.path == "/v1/chat/completions"
    assert json.loads(received.body)["messages"][0] == {"role": "system", "content": "Be brief."}
    names = {name.lower() for name, _ in received.headers}
    assert not names & {"x-api-key", "anthropic-version", "authorization"}


async def test_stream_is_accumulated_by_the_sdk(sdk, beast):
    """Event by event, with the neuron's own usage at the end."""

    def stream():
        with sdk.messages.stream(**ASK) as events:
            kinds = [event.type for event in events]
            return kinds, events.get_final_message()

    kinds, message = await in_thread(stream)

    assert "Tbilisi" in message.content[0].text
    assert kinds[0] == "message_start"
    assert kinds[-1] == "message_stop"
    assert message.usage.input_tokens + message.usage.cache_read_input_tokens > 0
    assert json.loads(beast.requests[0].body)["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    ("change", "raised", "words"),
    [
        ({"model": "nobody/has-it"}, anthropic.NotFoundError, "not found"),
        ({"messages": []}, anthropic.BadRequestError, "at least one message"),
        ({"messages": [{"role": "user", "content": [{"type": "image", "source": 7}]}]}, anthropic.BadRequestError, "0"),
    ],
)
async def test_errors_are_the_sdk_s_own(sdk, change, raised, words):
    """By type, with our words and the request's id."""
    with pytest.raises(raised, match=words) as caught:
        await in_thread(lambda: sdk.messages.create(**(ASK | change)))

    assert caught.value.body["type"] == "error"
    assert caught.value.body["request_id"] == caught.value.request_id


async def test_stream_that_breaks_off_ends_in_an_error_event(sdk, beast):
    """After half an answer; the SDK raises, and no message_stop was made up."""
    beast.faults.add(faults.Drop(after=3))
    seen = []

    def stream():
        with sdk.messages.stream(**ASK) as events:
            seen.extend(event.type for event in events)

    with pytest.raises(anthropic.APIStatusError, match="broke off"):
        await in_thread(stream)

    assert "text" in seen
    assert "message_stop" not in seen
