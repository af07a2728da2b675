"""Headers are decided, not passed: whatever comes in, only the listed ones go out, in both directions."""

import dataclasses
from pathlib import Path

import pytest
from fakes.in_memory import InMemoryGateway
from fakes.scripted import DONE, chunked, delta, read_request, with_length
from hypothesis import given
from hypothesis import strategies as st

from gateway.config.settings import GatewaySettings, RetrySettings, Settings
from gateway.proxy import header_policy

API_DOCS = Path(__file__).parents[3] / "docs/api.md"
CHAT, MESSAGES = "/v1/chat/completions", "/v1/messages"
HI = [{"role": "user", "content": "hi"}]
JSON = b'{"object":"chat.completion","choices":[{"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}'

TO_NEURON = {
    "accept", "content-type", "user-agent", "traceparent", "tracestate", "x-request-id", "x-session-id",
    "accept-encoding",
}  # fmt: skip
OF_THE_DIALECT = {"anthropic-version", "anthropic-beta", "openai-beta"}
NEVER_TO_NEURONS = (
    "host", "authorization", "x-api-key", "api-key", "cookie", "origin", "referer", "forwarded", "x-forwarded-for",
    "x-forwarded-host", "sec-fetch-mode", "sec-ch-ua", "x-cortex-node", "x-helexa-user", "te", "trailer", "upgrade",
    "proxy-authorization", "keep-alive", "via", "x-real-ip", "content-encoding", "content-length", "expect", "range",
)  # fmt: skip
TO_CLIENT = {
    "content-type", "content-disposition", "content-encoding", "retry-after", "retry-after-ms", "x-should-retry",
    "openai-processing-ms", "server-timing",
}  # fmt: skip
TO_CLIENT_PREFIXES = ("x-ratelimit-", "anthropic-ratelimit-")
NEVER_TO_CLIENTS = (
    "access-control-allow-origin", "access-control-allow-credentials", "set-cookie", "strict-transport-security",
    "alt-svc", "server", "location", "via", "x-request-id", "request-id", "x-cortex-node", "allow", "vary",
    "www-authenticate", "proxy-authenticate", "keep-alive", "content-length", "transfer-encoding", "trailer", "date",
    "cache-control", "etag", "link", "content-security-policy",
)  # fmt: skip

tokens = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=12)
names_to_neuron = st.sampled_from(sorted(TO_NEURON | OF_THE_DIALECT) + list(NEVER_TO_NEURONS)) | tokens
names_to_client = st.sampled_from(sorted(TO_CLIENT) + list(NEVER_TO_CLIENTS) + ["x-ratelimit-limit-tokens"]) | tokens
values = st.text("abc,; =/", max_size=8)
lines = st.lists(st.tuples(st.just("connection"), tokens | st.sampled_from(["accept", "retry-after"])), max_size=2)


def encoded(headers):
    return [(name.encode(), value.encode()) for name, value in headers]


@given(
    st.lists(st.tuples(names_to_neuron, values), max_size=12), lines, st.booleans(), st.sampled_from([None, b"form"])
)
def test_neuron_gets_only_listed_headers(headers, connection, in_clients_dialect, form_type):
    """None that `connection` names, and one content type, one id and one accept-encoding, which are the gateway's."""
    sent = header_policy.for_neuron(
        encoded([*headers, *connection]),
        "my-id",
        form_type=form_type,
        in_clients_dialect=in_clients_dialect,
        also=("x-mine",),
    )
    own = [
        (b"content-type", form_type or b"application/json"),
        (b"accept-encoding", b"identity"),
        (b"x-request-id", b"my-id"),
    ]
    named = {value for _, value in connection}
    allowed = (TO_NEURON | {"x-mine"} | (OF_THE_DIALECT if in_clients_dialect else set())) - named
    allowed -= {"content-type", "accept-encoding", "x-request-id"}

    assert sent == encoded(header for header in headers if header[0] in allowed) + own


@given(st.lists(st.tuples(names_to_client, values), max_size=12), lines)
def test_client_gets_only_listed_headers(headers, connection):
    """None that `connection` names, either."""
    named = {value for _, value in connection}
    expected = [
        (name, value)
        for name, value in headers
        if (name in TO_CLIENT or name == "x-mine" or name.startswith(TO_CLIENT_PREFIXES)) and name not in named
    ]

    assert header_policy.for_client(encoded([*headers, *connection]), ("x-mine",)) == encoded(expected)


def test_docs_list_every_header_that_passes():
    """With its reason, in the tables of docs/api.md."""
    text = API_DOCS.read_text()
    listed = {
        **header_policy.TO_NEURON,
        **header_policy.TO_NEURON_IN_THE_CLIENTS_DIALECT,
        **header_policy.TO_CLIENT,
        **{f"{prefix}*": reason for prefix, reason in header_policy.TO_CLIENT_PREFIXES.items()},
    }

    assert [name for name, reason in listed.items() if f"| `{name}` | {reason}" not in text] == []


# Through the whole gateway...


def answering_all(answer, received):
    async def peer(stream):
        while request := await read_request(stream):
            received.append(request)
            await stream.send_all(answer)

    return peer


@pytest.fixture
def before(nursery):
    """Makes a gateway in front of one neuron that answers every request with these bytes."""

    def make(answer, received=None, **keys):
        settings = dataclasses.replace(Settings(retries=RetrySettings(attempts=0)), gateway=GatewaySettings(**keys))
        peer = answering_all(answer, [] if received is None else received)
        return InMemoryGateway(nursery, {"beast": peer}, settings)

    return make


def header_lines(request):
    """By lower-case name."""
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}


FRAMING = {"host", "content-length", "expect", "content-encoding", "transfer-encoding"}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, "/v1/responses"])
@pytest.mark.parametrize("content_type", [None, "text/plain", "application/x-www-form-urlencoded"])
async def test_json_goes_out_as_json_whatever_the_client_says(autojump_clock, before, path, content_type):
    """Translated or not; the client's identity and its browser's headers stay here."""
    received = []
    gateway = before(with_length(JSON), received)
    never = tuple(f"{name}: secret" for name in NEVER_TO_NEURONS if name not in FRAMING)
    own = () if content_type is None else (f"content-type: {content_type}",)
    body = {"model": "helexa/small", "max_tokens": 9, "input": "hi", "messages": HI}
    answer = await gateway.client().ask(body, path, headers=(*never, *own, "anthropic-beta: b", "user-agent: me"))

    assert answer.status == 200
    sent = header_lines(received[0])
    assert sent["content-type"] == "application/json"
    assert b"secret" not in received[0]
    assert set(sent) <= TO_NEURON | OF_THE_DIALECT | {"host", "content-length"}
    assert ("anthropic-beta" in sent) == (path == CHAT)


ENGINES = "".join(f"{name}: theirs\r\n" for name in NEVER_TO_CLIENTS if name not in FRAMING)
TOLD = "retry-after-ms: 250\r\nx-should-retry: false\r\nx-ratelimit-remaining-requests: 0\r\nx-mine: told\r\n"


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
@pytest.mark.parametrize("status", ["200 OK", "400 Bad Request", "429 Too Many Requests", "500 Oops", "503 Busy"])
async def test_client_gets_the_same_headers_on_every_status(autojump_clock, before, path, status):
    """What tells it when to come back, and what the operator lists; nothing of the engine's own hop."""
    gateway = before(with_length(JSON, status=status, more=ENGINES + TOLD), pass_headers=("x-mine",))
    answer = await gateway.client().ask({"model": "helexa/small", "max_tokens": 9, "messages": HI}, path)

    assert answer.status == int(status[:3])
    assert answer.headers["retry-after-ms"] == "250"
    assert answer.headers["x-should-retry"] == "false"
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert answer.headers["x-mine"] == "told"
    assert "theirs" not in answer.headers.values()


async def test_stream_has_the_listed_headers_and_our_own(autojump_clock, before):
    """Its content type unchanged."""
    gateway = before(chunked(delta("x"), DONE, more=ENGINES + TOLD))
    answer = await gateway.client().ask(stream=True)

    assert answer.headers["content-type"] == "text/event-stream"
    assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    assert "x-mine" not in answer.headers
    assert "theirs" not in answer.headers.values()


async def test_operator_lets_further_headers_pass(autojump_clock, before):
    """By name, to the neuron."""
    received = []
    gateway = before(with_length(JSON), received, pass_request_headers=("x-tenant",))
    await gateway.client().ask(headers=("x-tenant: blue", "x-other: red"))

    assert header_lines(received[0])["x-tenant"] == "blue"
    assert b"red" not in received[0]
