"""`/v1/messages` through the gateway on real sockets: the unmodified `anthropic` SDK, and the neuron's requests."""

import json
from contextlib import asynccontextmanager

import anthropic
import httpx
import pytest
import trio
from fakes import coding_cli
from fakes.in_memory import Client
from fakes.patience import SAFETY_NET_S
from fakes.running import PROBE, SMALL, running_gateway
from fakes.scripted import DONE, chunked, delta, listening, read_request, with_length

from gateway.config.settings import NeuronSettings
from gateway.proxy import count_tokens
from neuron.simulated import faults

ASK = {"model": "helexa/small", "max_tokens": 64, "messages": PROBE}


@pytest.fixture
def sdk(cortex):
    with anthropic.Anthropic(base_url=cortex.url, api_key="a-client's-own", max_retries=0) as opened:
        yield opened


def in_thread(call):
    """The sync SDK blocks; the gateway runs in this thread."""
    return trio.to_thread.run_sync(call)


async def test_create_answers_in_anthropic_form(sdk, beast):
    """Text, usage and ids. The neuron gets a chat completion with its own model name and without the client's key."""
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
    """By type, with the gateway's message and the request's id."""
    with pytest.raises(raised, match=words) as caught:
        await in_thread(lambda: sdk.messages.create(**(ASK | change)))

    assert caught.value.body["type"] == "error"
    assert caught.value.body["request_id"] == caught.value.request_id


async def test_stream_that_breaks_ends_in_an_error_event(sdk, beast):
    """After half an answer the SDK raises, and cortex does not invent a message_stop."""
    beast.faults.add(faults.Drop(after=3))
    seen = []

    def stream():
        with sdk.messages.stream(**ASK) as events:
            seen.extend(event.type for event in events)

    with pytest.raises(anthropic.APIStatusError, match="in the middle of its response"):
        await in_thread(stream)

    assert "text" in seen
    assert "message_stop" not in seen


async def test_coding_cli_session_reaches_the_neuron_as_chat(http, beast):
    """Two turns of 76 kB with 24 tools, system turns inside the messages, `?beta=true` and unknown betas."""
    headers = {"anthropic-version": "2023-06-01", "anthropic-beta": "new-thing-2027-01-01", "x-api-key": "k"}
    assert (await http.head("/")).status_code == 200
    for turn in (1, 2):
        answer = await http.post("/v1/messages?beta=true", content=coding_cli.body(turn), headers=headers)
        assert answer.status_code == 200
        assert answer.text.rstrip().endswith('{"type":"message_stop"}')

    first, second = (json.loads(received.body) for received in beast.requests)
    assert [received.path for received in beast.requests] == ["/v1/chat/completions"] * 2
    assert (first["model"], len(first["tools"]), first["stream"]) == (SMALL, 24, True)
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert {message["role"] for message in second["messages"]} >= {"system", "user", "assistant", "tool"}
    sent = {name.lower() for received in beast.requests for name, _ in received.headers}
    assert not {name for name in sent if name.startswith("anthropic-")} | (sent & {"x-api-key"})


async def test_coding_cli_session_keeps_everything_a_model_needs(http, beast):
    """All content reaches the neuron in its place; fields unknown to backends do not."""
    assert 76_000 < len(coding_cli.body(1)) < len(coding_cli.body(2)) < 82_000
    await http.post("/v1/messages?beta=true", content=coding_cli.body(2))

    [received] = beast.requests
    got, original_request = json.loads(received.body), coding_cli.request(2)
    assert got.keys() == {
        *("model", "messages", "max_tokens", "user", "tools", "chat_template_kwargs", "stream", "stream_options")
    }
    assert [tool["function"]["name"] for tool in got["tools"]] == coding_cli.TOOL_NAMES
    for tool, original in zip(got["tools"], original_request["tools"], strict=True):
        assert tool["function"]["parameters"] == original["input_schema"]
        assert tool["function"]["description"] == original["description"]
    assert (got["user"], got["max_tokens"]) == (coding_cli.USER_ID, 32000)
    assert b"cache_control" not in received.body
    assert b"billing" not in received.body
    system, *turns = got["messages"]
    assert system["content"] == "\n".join(block["text"] for block in original_request["system"][1:])
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "tool", "user"]
    assert turns[0]["content"].rstrip().endswith("</system-reminder>")
    assert "Available agents: none" in turns[0]["content"]  # the system turn, in its place: merged, as the last
    assert [(call["id"], json.loads(call["function"]["arguments"])) for call in turns[1]["tool_calls"]] == [
        ("toolu_1", {"path": "/1"}),
        ("toolu_2", {"path": "/2"}),
    ]
    assert [turn["tool_call_id"] for turn in turns[2:4]] == ["toolu_1", "toolu_2"]
    assert "no such folder" in turns[3]["content"]
    assert turns[4]["content"][0] == {"type": "text", "text": "go on"}
    assert turns[4]["content"][-1]["image_url"]["url"] == "data:image/png;base64,iVBORw0KGgo="


@asynccontextmanager
async def gateway_in_front_of(tmp_path, peer, **neuron):
    """A gateway with one backend, `peer`, which lists the small model, and the SDK as its client."""
    models = with_length(b'{"object":"list","data":[{"id":"%b"}]}' % SMALL.encode())

    async def serve(stream):
        request = await read_request(stream)
        if request.startswith(b"GET "):
            await stream.send_all(models)
        else:
            await peer(stream, request)

    async with listening(serve) as url:
        backend = NeuronSettings("engine", url, kind="openai", **neuron)
        async with running_gateway(tmp_path, [], backends=(backend,)) as cortex:
            with anthropic.Anthropic(base_url=cortex.url, api_key="k", max_retries=0) as opened:
                yield opened


async def test_backend_that_speaks_messages_gets_the_body_unchanged(tmp_path):
    """Only `model` differs; the dialect's own headers are forwarded, and the answer comes back unchanged."""
    got = []
    answer = b'{"type":"message","id":"msg_1","role":"assistant","model":"m","content":[],"native":true}'

    async def peer(stream, request):
        got.append(request)
        await stream.send_all(with_length(answer))

    async with gateway_in_front_of(tmp_path, peer, dialects=("openai", "anthropic")) as sdk:
        raw = await in_thread(lambda: sdk.messages.with_raw_response.create(**ASK, extra_body={"top_secret": 1}))

    assert raw.read() == answer
    head, _, body = got[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/messages HTTP/1.1")
    assert b"anthropic-version" in head
    assert b"x-api-key" not in head
    assert json.loads(body) == {**ASK, "model": SMALL, "top_secret": 1}


async def test_count_tokens_estimate_is_marked(sdk, beast):
    """The simulated neuron has no tokenizer API, so it gets no request. More text means more tokens."""
    short = await in_thread(lambda: sdk.messages.with_raw_response.count_tokens(model="helexa/small", messages=PROBE))
    long = await in_thread(
        lambda: sdk.messages.count_tokens(
            model="helexa/small", messages=PROBE, system="word " * 700, tools=[coding_cli.tool("Read")]
        )
    )

    assert short.headers["x-cortex-token-count"] == "estimate"
    assert long.input_tokens > short.parse().input_tokens + 700
    assert not beast.requests


async def test_count_tokens_works_without_a_healthy_neuron(tmp_path):
    """A client counts before it sends its request; the neuron for that may start only then."""
    async with (
        running_gateway(tmp_path) as running,
        httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=SAFETY_NET_S) as http,
    ):
        await running.down()
        answer = await http.post("/v1/messages/count_tokens", json={"model": "helexa/small", "messages": PROBE})
        metrics = (await http.get(running.metrics_url)).text

    series = f'cortex_alias_target_requests_total{{alias="helexa/small",generation="1",target="{SMALL}"}}'
    assert f"{series} 1.0" in metrics.splitlines()
    assert (answer.status_code, answer.headers["x-cortex-token-count"]) == (200, "estimate")
    assert answer.json()["input_tokens"] > 5


@pytest.mark.parametrize(
    ("neuron", "path", "answer", "counted"),
    [
        ({"engine": "vllm"}, "/tokenize", b'{"count":17,"max_model_len":4096,"tokens":[1]}', 17),
        ({"dialects": ("openai", "anthropic")}, "/v1/messages/count_tokens", b'{"input_tokens":19}', 19),
        ({"engine": "vllm"}, "/tokenize", b"[]", None),
    ],
)
async def test_count_tokens_uses_a_neuron_that_can_count(tmp_path, monkeypatch, neuron, path, answer, counted):
    """By a tokenizer or the endpoint itself. If the answer is invalid, cortex estimates."""
    monkeypatch.setattr(count_tokens, "COUNT_DEADLINE_S", SAFETY_NET_S)
    sent_requests = []

    async def peer(stream, request):
        sent_requests.append(request)
        await stream.send_all(with_length(answer))

    async with gateway_in_front_of(tmp_path, peer, **neuron) as sdk:
        raw = await in_thread(
            lambda: sdk.messages.with_raw_response.count_tokens(model="helexa/small", messages=PROBE, system="Hm.")
        )

    assert ("x-cortex-token-count" in raw.headers) == (counted is None)
    assert counted is None or raw.parse().input_tokens == counted
    assert sent_requests[0].startswith(b"POST %b HTTP/1.1" % path.encode())
    assert json.loads(sent_requests[0].partition(b"\r\n\r\n")[2])["model"] == SMALL


async def test_models_are_listed_in_anthropic_form(sdk):
    """If the client sends `anthropic-version`: as a list, one model, and an unknown model as Anthropic's error."""
    page = await in_thread(sdk.models.list)
    one = await in_thread(lambda: sdk.models.retrieve("helexa/small"))

    assert {"helexa/small", "helexa/large", SMALL} <= {model.id for model in page.data}
    assert (one.id, one.type) == ("helexa/small", "model")
    with pytest.raises(anthropic.NotFoundError, match="nobody/has-it"):
        await in_thread(lambda: sdk.models.retrieve("nobody/has-it"))


async def test_silence_is_filled_with_pings_and_a_disconnect_frees_the_neuron(tmp_path):
    """Pings start once the message has begun. When the client disconnects, the neuron's connection closes."""
    left = trio.Event()

    async def peer(stream, request):
        begun = chunked(delta("Hm"), end=b"")
        await stream.send_all(begun)
        assert await stream.receive_some(1) == b""
        left.set()

    async with gateway_in_front_of(tmp_path, peer) as sdk:
        async with await trio.open_tcp_stream("127.0.0.1", sdk.base_url.port) as stream:
            client = Client(stream)
            await client.send({**ASK, "stream": True}, "/v1/messages")
            _, headers = await client.head()
            received_bytes = b""
            while b"event: ping" not in received_bytes:
                received_bytes += await client.piece(headers)
        with trio.fail_after(SAFETY_NET_S):
            await left.wait()

    assert received_bytes.index(b"message_start") < received_bytes.index(b"event: ping")
    assert b": keep-alive" not in received_bytes


async def test_tool_use_streams_with_its_arguments(tmp_path):
    """The engine splits the arguments anywhere; the SDK assembles them."""
    parts = ['{"pa', 'th": "/', 'x"}']
    first = {"index": 0, "id": "call_1", "type": "function", "function": {"name": "look", "arguments": ""}}
    calls = [first, *({"index": 0, "function": {"arguments": part}} for part in parts)]
    chunks = [{"choices": [{"index": 0, "delta": {"tool_calls": [call]}}]} for call in calls]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "tool_calls"}]})

    async def peer(stream, request):
        await stream.send_all(chunked(*(b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks), DONE))

    def stream(sdk):
        with sdk.messages.stream(**ASK, tools=[coding_cli.tool("look")]) as events:
            return events.get_final_message()

    async with gateway_in_front_of(tmp_path, peer) as sdk:
        message = await in_thread(lambda: stream(sdk))

    [block] = message.content
    assert (block.type, block.name, block.input, message.stop_reason) == (
        "tool_use",
        "look",
        {"path": "/x"},
        "tool_use",
    )
