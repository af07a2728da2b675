"""Deadlines and timings with the official SDKs, unmodified, on real sockets."""

import anthropic
import openai
import pytest
import trio
from fakes.patience import SAFETY_NET_S
from fakes.running import PROBE

from neuron.simulated import faults

PLEASE = {"x-cortex-timing": "1"}
IN_300_MS = {"x-request-deadline-ms": "300"}

# The SDK leaves its own async generators to the garbage collector when a stream is read to its end; not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore:Async generator .*:ResourceWarning")


@pytest.fixture
def openai_sdk(cortex):
    with openai.OpenAI(base_url=f"{cortex.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture
def anthropic_sdk(cortex):
    with anthropic.Anthropic(base_url=cortex.url, api_key="none", max_retries=0, timeout=60) as client:
        yield client


def in_thread(call):
    """The sync SDKs block; the gateway runs in this thread."""
    return trio.to_thread.run_sync(call)


def chat(sdk, **how):
    return sdk.chat.completions.create(model="helexa/small", messages=PROBE, **how)


async def test_openai_sdk_ignores_the_comment(openai_sdk, cortex):
    """The chunks are the same as without it, and the request does not count as disconnected."""

    def texts(**how):
        return [chunk.choices[0].delta.content for chunk in chat(openai_sdk, stream=True, **how) if chunk.choices]

    plain = await in_thread(texts)
    timed = await in_thread(lambda: texts(extra_headers=PLEASE))

    assert timed == plain
    assert "cortex_client_disconnects_total" not in cortex.gateway.metrics.expose().decode()


async def test_anthropic_sdk_ignores_the_comment(anthropic_sdk, cortex):
    """Its accumulator has the whole message."""

    def stream():
        arguments = {"model": "helexa/small", "max_tokens": 64, "messages": PROBE, "extra_headers": PLEASE}
        with anthropic_sdk.messages.stream(**arguments) as events:
            kinds = [event.type for event in events]
            return kinds, events.get_final_message()

    kinds, message = await in_thread(stream)

    assert kinds[-1] == "message_stop"
    assert "Tbilisi" in message.content[0].text
    assert "cortex_client_disconnects_total" not in cortex.gateway.metrics.expose().decode()


async def test_comment_is_on_the_wire(wire):
    """Which the SDKs ignore."""
    async with wire() as client:
        answer = await client.ask(stream=True, headers=("x-cortex-timing: 1",))

    assert b"\n\n: cortex-timing {" in answer.body
    assert answer.body.endswith(b"}\n\ndata: [DONE]\n\n")


async def test_sdks_raise_their_own_error_when_the_deadline_expires(openai_sdk, anthropic_sdk, beast):
    """A 504 by status, and with `param` in OpenAI's form; the neuron is free."""
    beast.faults.add(faults.Hang())
    with pytest.raises(openai.InternalServerError) as theirs:
        await in_thread(lambda: chat(openai_sdk, extra_headers=IN_300_MS))
    arguments = {"model": "helexa/small", "max_tokens": 64, "messages": PROBE, "extra_headers": IN_300_MS}
    with pytest.raises(anthropic.InternalServerError, match="in total ran out"):
        await in_thread(lambda: anthropic_sdk.messages.create(**arguments))

    assert (theirs.value.status_code, theirs.value.param) == (504, "total")
    with trio.fail_after(SAFETY_NET_S):
        while len(beast.cancelled) < 2:
            await trio.sleep(0.01)


async def test_browsers_may_read_the_header(http):
    """CORS exposes it; a page may send a deadline."""
    headers = {"origin": "https://chat.example", "access-control-request-headers": "x-request-deadline-ms"}
    preflight = await http.options("/v1/chat/completions", headers=headers)
    answer = await http.post(
        "/v1/chat/completions",
        json={"model": "helexa/small", "messages": PROBE},
        headers={"origin": "https://chat.example"},
    )

    assert preflight.headers["access-control-allow-headers"] == "x-request-deadline-ms"
    assert "server-timing" in answer.headers["access-control-expose-headers"]
    assert answer.headers["server-timing"].startswith("total;dur=")
