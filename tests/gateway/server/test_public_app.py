"""The door of the public port, and what holds for every window: CORS as configured, bodies of bounded size and time."""

import json

import pytest
import trio

from gateway.config.settings import GatewaySettings, Settings
from gateway.server import public_app as app_module
from gateway.server.public_app import PublicApp, PublicRoutes, make_windows, new_app

CHAT = "/v1/chat/completions"
PAGE = b"https://page.example"


async def call(app, method, path, *headers, body=b"", arrives=True):
    """One request over ASGI; status, headers and body of the answer. One that does not arrive is never whole."""
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"a"), *headers], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "state": {}, "extensions": {},
    }  # fmt: skip
    inbox = [{"type": "http.request", "body": body, "more_body": not arrives}]
    sent = []

    async def receive():
        await trio.lowlevel.checkpoint()
        if not inbox:
            await trio.sleep_forever()
        return inbox.pop()

    async def send(message):
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], {name.lower(): value for name, value in sent[0]["headers"]}, answer


@pytest.fixture
def door():
    """Makes a door with these origins; behind it there is an answer to everything."""

    def make(*origins):
        async def anything(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        return PublicApp(anything, anything, Settings(gateway=GatewaySettings(cors_origins=origins)))

    return make


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
async def test_pages_of_configured_origins_may_call_and_no_others(door, origins, allowed, path):
    """The answer goes out in any case; it is the browser that keeps it from a page which is not named here."""
    _, headers, _ = await call(door(*origins), "GET", path, (b"origin", PAGE))
    assert headers.get(b"access-control-allow-origin") == allowed
    exposed = headers.get(b"access-control-expose-headers", b"").split(b", ")
    told = {b"x-request-id", b"x-cortex-model", b"x-cortex-node", b"x-cortex-alias", b"retry-after"}
    assert told <= set(exposed) if allowed is not None else exposed == [b""]
    assert headers.get(b"vary") == (b"origin" if allowed == PAGE else None)


@pytest.mark.parametrize(("origins", "allowed"), [(("*",), b"*"), ((PAGE.decode(),), PAGE), ((), None)])
async def test_preflight_is_answered_for_those_pages(door, origins, allowed):
    """Without auth, which browsers do not send with it, and with whatever headers are asked for."""
    status, headers, _ = await call(door(*origins), "OPTIONS", CHAT, (b"origin", PAGE), *PREFLIGHT)
    assert status == 204
    assert headers.get(b"access-control-allow-origin") == allowed
    assert headers.get(b"access-control-allow-headers") == (None if allowed is None else b"authorization")


@pytest.fixture
def window():
    """A window that reads what it is sent."""
    app = new_app("test")

    @app.post("/window")
    async def look():
        return str(len(await app_module.request.get_data()))

    return app


async def test_body_of_a_window_is_bounded(window):
    """1 MiB: nothing but inference takes a body worth the name."""
    limit = app_module.WINDOW_BODY_LIMIT_BYTES
    status, _, body = await call(window, "POST", "/window", body=b"x" * limit)
    assert (status, body) == (200, b"%d" % limit)
    status, _, body = await call(window, "POST", "/window", body=b"x" * (limit + 1))
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_body_of_a_window_that_does_not_arrive_is_a_408(autojump_clock, window):
    """A client that stops in the midst of it keeps nothing open for longer than that."""
    status, _, body = await call(window, "POST", "/window", body=b"x", arrives=False)
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert trio.current_time() == app_module.WINDOW_TIMEOUT_S


@pytest.mark.parametrize(("ready", "status"), [(False, 503), (True, 200)])
async def test_ready_is_for_whoever_sends_traffic_here(ready, status):
    """Started, and some neuron has answered once; until then a load balancer had better ask elsewhere."""
    app = make_windows(PublicRoutes(models=list, model=lambda _: None, health=dict, ready=lambda: ready), "1")

    got, _, body = await call(app, "GET", "/ready")

    assert (got, json.loads(body)) == (status, {"ready": ready})


async def _told_of_a_websocket(app, extensions):
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": [], "extensions": extensions}
    inbox, sent = [{"type": "websocket.connect"}], []

    async def receive():
        await trio.lowlevel.checkpoint()
        return inbox.pop()

    async def send(message):
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_websocket_is_refused_in_words_where_the_server_can_say_them(door):
    """A realtime client meets a 404, as it does at our own front; it was a 500 and a traceback behind Hypercorn."""
    start, body = await _told_of_a_websocket(door(), {"websocket.http.response": {}})
    assert (start["status"], json.loads(body["body"])["error"]["code"]) == (404, "not_found")
    assert await _told_of_a_websocket(door(), {}) == [{"type": "websocket.close"}]
