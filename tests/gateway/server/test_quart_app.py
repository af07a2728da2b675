"""What holds for every Quart route: request bodies of bounded size and time."""

import json

import pytest
import trio
from fakes.asgi_client import call

from gateway.server import quart_app


@pytest.fixture
def app():
    """An application with one route, which reads its body."""
    app = quart_app.new_app("test", str)

    @app.post("/length")
    async def length():
        return str(len(await quart_app.request.get_data()))

    return app


async def test_body_larger_than_the_limit_is_a_413(app):
    """The limit is 1 MiB."""
    limit = quart_app.BODY_LIMIT_BYTES
    status, _, body = await call(app, "POST", "/length", body=b"x" * limit)
    assert (status, body) == (200, b"%d" % limit)
    status, _, body = await call(app, "POST", "/length", body=b"x" * (limit + 1))
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


async def test_body_that_does_not_arrive_is_a_408(autojump_clock, app):
    """A client that stops in the middle of its body does not keep the request open for longer than the timeout."""
    status, _, body = await call(app, "POST", "/length", body=b"x", arrives=False)
    assert (status, json.loads(body)["error"]["code"]) == (408, "request_timeout")
    assert trio.current_time() == quart_app.TIMEOUT_S
