"""NeuronClient: its calls, its lenient reading, its errors; and the rewriting of loopback URLs."""

import json

import httpx
import pytest
import trio
from fakes.neuron import ENDPOINT, FakeNeuron, answer, model
from fakes.scripted import answering, listening, with_length
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet.control.neuron_client import ANSWER_LIMIT_BYTES, NeuronClient, loopback_rewrite
from gateway.fleet.control.types import NeuronMalformed, NeuronRefused, NeuronUnreachable


@pytest.fixture
def neuron():
    return FakeNeuron(model("Qwen/Qwen3-1.7B"))


@pytest.fixture
async def client(neuron):
    async with NeuronClient(ENDPOINT, transport=neuron) as client:
        yield client


def responds(neuron, path, text, status=200):
    neuron.overrides[path] = lambda: httpx.Response(status, stream=httpx.ByteStream(text))


async def test_discovery_health_and_models_are_read(client, neuron):
    """The three calls of a poll with full answers."""
    assert (await client.discovery()).devices[0].vram_total_mb == 24_000
    assert (await client.health()).devices[0].vram_free_mb == 20_000
    assert [entry.id for entry in await client.models()] == ["Qwen/Qwen3-1.7B"]


async def test_endpoint_quotes_the_id_as_one_segment_and_rewrites_loopback(client, neuron):
    """A slash in an id is quoted; localhost is replaced by the host of the endpoint."""
    assert await client.endpoint("Qwen/Qwen3-1.7B") == "http://beast.lan:8080"
    assert neuron.calls[-1][1] == "GET /models/Qwen%2FQwen3-1.7B/endpoint"


async def test_endpoint_loses_its_trailing_slash_even_on_another_host(client, neuron):
    """Paths are appended to the URL."""
    neuron.inference_url = "http://other.host:1234/"
    assert await client.endpoint("Qwen/Qwen3-1.7B") == "http://other.host:1234"


async def test_answers_are_read_leniently(client, neuron):
    """Unknown fields, nulls, missing fields and floats for integers are accepted."""
    responds(neuron, "/health", b'{"uptime_secs":1.5,"devices":[{"index":0.0,"vram_free_mb":1.0,"x":1}],"new":[]}')
    health = await client.health()
    assert (health.uptime_secs, health.devices[0].vram_free_mb, health.devices[0].temp_c) == (1.5, 1, None)
    assert (health.activation, health.models) == (None, None)
    responds(
        neuron, "/models", b'[{"id":"m","status":"loaded","devices":null,"limit":{"context":4096.0},"servable":{}}]'
    )
    (entry,) = await client.models()
    assert (entry.harness, entry.limit.context, entry.servable.ok) == (None, 4096, True)
    responds(neuron, "/discovery", b"{}")
    assert (await client.discovery()).devices is None


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"null", b"[1]", b'{"a":1}', b"<html>", b'[{"id":1,"status":"loaded"}]', b"\xff", b"[" * 100_000],
)
async def test_answer_that_is_not_the_api_is_malformed(client, neuron, text):
    """No guess, and no other exception."""
    responds(neuron, "/models", text)
    with pytest.raises(NeuronMalformed):
        await client.models()


async def test_answer_without_end_is_cut_off(client, neuron):
    """An endless answer must not fill the memory."""

    class Endless(httpx.AsyncByteStream):
        sent = 0

        def __aiter__(self):
            return self

        async def __anext__(self):
            await trio.lowlevel.checkpoint()
            self.sent += 1_000_000
            return b" " * 1_000_000

    endless = Endless()
    neuron.overrides["/models"] = lambda: httpx.Response(200, stream=endless)
    with pytest.raises(NeuronMalformed, match="longer"):
        await client.models()
    assert endless.sent <= ANSWER_LIMIT_BYTES + 1_000_000


async def test_compressed_answer_is_not_inflated(client, neuron):
    """The client asks for identity, so compressed bytes are not inflated."""
    bomb = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"\x1f\x8b"))
    neuron.overrides["/models"] = lambda: bomb
    with pytest.raises(NeuronMalformed):
        await client.models()


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (404, b'{"error":"model \'x\' not loaded"}', "model 'x' not loaded"),
        (500, b"Internal Server Error\n", "Internal Server Error"),
        (302, b"", ""),
        (503, b"\xff" * 5_000, "\ufffd" * 500),
    ],
)
async def test_refusal_has_the_status_and_the_error_text(client, neuron, status, text, words):
    """The text of the error, else the body, of limited length."""
    responds(neuron, "/models", text, status)
    with pytest.raises(NeuronRefused) as caught:
        await client.models()
    assert (caught.value.status, caught.value.text) == (status, words)


async def test_redirect_is_not_followed(client, neuron):
    """The API key would be sent to another host, whose answer is not the neuron's."""
    elsewhere = {"location": "http://evil.example/models"}
    neuron.overrides["/models"] = lambda: httpx.Response(307, headers=elsewhere, stream=httpx.ByteStream(b""))
    with pytest.raises(NeuronRefused) as caught:
        await client.models()

    assert caught.value.status == 307
    assert [called for _, called in neuron.calls] == ["GET /models"]


async def test_proxies_of_the_environment_are_not_used(monkeypatch):
    """An environment may name a proxy for the web; neurons are not behind it."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # no server
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    async with listening(answering(with_length(b"[]"))) as url, NeuronClient(url) as client:
        assert await client.models() == ()


@pytest.mark.parametrize("host", ["beast..lan", "a" * 64, "xn--zz--.invalid"])
async def test_invalid_host_name_is_unreachable(host):
    """A typo in the endpoint must not crash the poller."""
    async with NeuronClient(f"http://{host}:1") as client:
        with pytest.raises(NeuronUnreachable):
            await client.models()


async def test_refused_connection_is_unreachable(client, neuron):
    """Errors of httpx are translated."""
    neuron.unreachable = True
    with pytest.raises(NeuronUnreachable, match="refused"):
        await client.health()


async def test_load_sends_every_field_and_null_where_unset(client, neuron):
    """Nullable fields are null, never omitted."""
    neuron.overrides["/models/load"] = lambda: answer(200, {"status": "loaded"})
    await client.load("hf:m", "vllm", devices=(0, 1), tensor_parallel=2)
    assert json.loads(neuron.bodies[-1]) == {
        "model_id": "hf:m",
        "harness": "vllm",
        "quant": None,
        "tensor_parallel": 2,
        "devices": [0, 1],
    }


async def test_load_of_what_is_already_loaded_is_success(client, neuron):
    """The goal is reached."""
    neuron.overrides["/models/load"] = lambda: answer(400, {"error": "model 'm' already loaded"})
    await client.load("m", "vllm")


async def test_failed_load_has_the_reason(client, neuron):
    """A neuron answers every failure with 400 and a text."""
    neuron.overrides["/models/load"] = lambda: answer(400, {"error": "out of memory"})
    with pytest.raises(NeuronRefused, match="out of memory"):
        await client.load("m", "vllm")


async def test_load_has_no_deadline_of_its_own(neuron, autojump_clock):
    """A load may take long; the caller sets the deadline."""
    neuron.overrides["/models/load"] = lambda: answer(200, {"status": "loaded"})
    neuron.slow_s["/models/load"] = 1500
    async with NeuronClient(ENDPOINT, transport=neuron) as client:
        await client.load("m", "vllm")
    assert trio.current_time() == 1500


async def test_unload_names_the_model(client, neuron):
    """The body has one field."""
    neuron.overrides["/models/unload"] = lambda: answer(200, {"status": "unloaded"})
    await client.unload("m")
    assert json.loads(neuron.bodies[-1]) == {"model_id": "m"}


# Loopback URLs ........................................................................................................


@pytest.mark.parametrize(
    ("inference", "configured", "seen_from_here"),
    [
        ("http://localhost:13131", "http://beast.x:13131", "http://beast.x:13131"),
        ("http://127.0.0.1:8080", "http://beast.lan:13131", "http://beast.lan:8080"),
        ("http://other.host:1234", "http://beast.lan:13131", "http://other.host:1234"),
        ("http://0.0.0.0:8080", "http://beast.lan:13131", "http://beast.lan:8080"),
        ("http://[::1]:8080", "http://beast.lan:13131", "http://beast.lan:8080"),
        ("http://LOCALHOST:8080", "http://beast.lan:13131", "http://beast.lan:8080"),
        ("http://localhost:8080", "http://[fd00::7]:13131", "http://[fd00::7]:8080"),
        ("http://localhost:8080/", "http://beast.lan:13131", "http://beast.lan:8080"),
        ("http://localhost:8080/m/7/", "http://beast.lan:13131/base", "http://beast.lan:8080/m/7"),
        ("https://localhost/m", "http://beast.lan:13131", "https://beast.lan/m"),
        ("http://localhost:8080", "http://127.0.0.1:13131", "http://127.0.0.1:8080"),
        ("http://127.0.0.2:8080", "http://beast.lan:13131", "http://127.0.0.2:8080"),
        ("http://localhost.evil:8080", "http://beast.lan:13131", "http://localhost.evil:8080"),
        ("http://other.host:1234/", "http://beast.lan:13131", "http://other.host:1234/"),
        ("localhost:8080", "http://beast.lan:13131", "localhost:8080"),
        ("http://localhost:port", "http://beast.lan:13131", "http://localhost:port"),
        ("http://[::1", "http://beast.lan:13131", "http://[::1"),
        ("http://localhost:8080", "beast", "http://localhost:8080"),
        ("", "http://beast.lan:13131", ""),
    ],
)
def test_loopback_rewrite_table(inference, configured, seen_from_here):
    """Loopback hosts are replaced, other hosts and invalid URLs are not."""
    assert loopback_rewrite(inference, configured) == seen_from_here


PORTS = st.one_of(st.just(""), st.integers(1, 65535).map(lambda port: f":{port}"))
PATHS = st.lists(st.text("abc-_~.09", min_size=1), max_size=3).map(lambda parts: "".join(f"/{part}" for part in parts))
HOSTS = st.sampled_from(["beast", "beast.lan", "10.0.0.7", "[fd00::1]"])


@given(
    scheme=st.sampled_from(["http", "https"]),
    loopback=st.sampled_from(["localhost", "127.0.0.1", "0.0.0.0", "[::1]"]),
    rest=st.tuples(PORTS, PATHS).map("".join),
    slash=st.sampled_from(["", "/"]),
    outside=st.tuples(HOSTS, PORTS),
)
def test_loopback_rewrite_changes_the_host_and_nothing_else(scheme, loopback, rest, slash, outside):
    """Scheme, port and path of the inference URL stay; the host is that of the endpoint."""
    rewritten = loopback_rewrite(f"{scheme}://{loopback}{rest}{slash}", f"http://{''.join(outside)}")
    assert rewritten == f"{scheme}://{outside[0]}{rest}"


@given(url=st.text(), endpoint=st.one_of(st.text(), HOSTS.map(lambda host: f"http://{host}:1")))
def test_loopback_rewrite_never_raises(url, endpoint):
    """A neuron may report any string."""
    assert isinstance(loopback_rewrite(url, endpoint), str)
