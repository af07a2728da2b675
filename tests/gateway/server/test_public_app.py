"""CORS as configured, and WebSockets refused."""

import json

import pytest
import structlog
import trio
from fakes.asgi_client import call
from trio.testing import memory_stream_pair

from gateway.config.settings import GatewaySettings, Settings
from gateway.http.server import HttpServer, ServerLimits
from gateway.server.public_app import PublicApp

CHAT = "/v1/chat/completions"
PAGE = b"https://page.example"


@pytest.fixture
def public_app():
    """Makes a PublicApp with these CORS origins; every path behind it answers 200."""

    def make(*origins):
        async def ok(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        return PublicApp(ok, ok, Settings(gateway=GatewaySettings(cors_origins=origins)))

    return make


@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_our_own_server_sends_these_headers_too(public_app, autojump_clock, nursery, path):
    """There they are added by the server, because the proxy sends no ASGI messages through this application."""
    server = HttpServer(public_app("*"), limits=ServerLimits(), log=structlog.get_logger())
    ours, theirs = memory_stream_pair()
    nursery.start_soon(server.serve_stream, theirs)
    await ours.send_all(
        b"POST %b HTTP/1.1\r\nhost: a\r\norigin: %b\r\ncontent-length: 0\r\n\r\n" % (path.encode(), PAGE)
    )
    head = await ours.receive_some()
    assert head.startswith(b"HTTP/1.1 200")
    assert head.count(b"access-control-allow-origin: *\r\n") == 1


PREFLIGHT = (b"access-control-request-method", b"POST"), (b"access-control-request-headers", b"authorization")


@pytest.mark.parametrize(
    ("origins", "allowed"),
    [
        (("*",), b"*"),
        ((PAGE.decode(),), PAGE),
        ((PAGE.decode(), "https://other.example"), PAGE),
        (("https://other.example",), None),
        (("https://page.example.evil",), None),
        ((), None),
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models"])
async def test_pages_of_configured_origins_may_call_and_no_others(public_app, origins, allowed, path):
    """The answer is sent in any case: the browser withholds it from a page of another origin."""
    _, headers, _ = await call(public_app(*origins), "GET", path, (b"origin", PAGE))
    assert headers.get(b"access-control-allow-origin") == allowed
    exposed = headers.get(b"access-control-expose-headers", b"").split(b", ")
    expected = {b"x-request-id", b"x-cortex-model", b"x-cortex-node", b"x-cortex-alias", b"retry-after"}
    assert expected <= set(exposed) if allowed is not None else exposed == [b""]
    assert headers.get(b"vary") == (b"origin" if allowed == PAGE else None)


@pytest.mark.parametrize(("origins", "allowed"), [(("*",), b"*"), ((PAGE.decode(),), PAGE), ((), None)])
async def test_preflight_is_answered_for_those_pages(public_app, origins, allowed):
    """It needs no credentials, which browsers do not send with it, and allows the headers that are requested."""
    status, headers, _ = await call(public_app(*origins), "OPTIONS", CHAT, (b"origin", PAGE), *PREFLIGHT)
    assert status == 204
    assert headers.get(b"access-control-allow-origin") == allowed
    assert headers.get(b"access-control-allow-headers") == (None if allowed is None else b"authorization")


async def _open_websocket(app, extensions, path="/v1/realtime"):
    scope = {"type": "websocket", "path": path, "headers": [], "extensions": extensions}
    inbox, sent = [{"type": "websocket.connect"}], []

    async def receive():
        await trio.lowlevel.checkpoint()
        return inbox.pop()

    async def send(message):
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_websocket_is_refused_with_a_404_where_the_server_can_send_one(public_app):
    """As with our own server; without a handler, Hypercorn answered 500 and logged a traceback."""
    start, body = await _open_websocket(public_app(), {"websocket.http.response": {}})
    assert (start["status"], json.loads(body["body"])["error"]["code"]) == (404, "not_found")
    assert await _open_websocket(public_app(), {}) == [{"type": "websocket.close"}]


async def test_websocket_on_an_inference_path_is_a_426_with_hypercorn_too(public_app):
    """The endpoint exists, over HTTP."""
    start, _ = await _open_websocket(public_app(), {"websocket.http.response": {}}, "/v1/responses")

    assert start["status"] == 426
    assert (b"upgrade", b"HTTP/1.1") in start["headers"]
