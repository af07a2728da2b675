"""The public lookups."""

import json

import pytest
from fakes.asgi_client import call

from gateway.server import public_routes
from gateway.server.public_routes import PublicRoutes


@pytest.mark.parametrize(("ready", "status"), [(False, 503), (True, 200)])
async def test_ready_tells_load_balancers_whether_any_neuron_has_answered(ready, status):
    """503 until then."""
    routes = PublicRoutes(models=list, model=lambda _: None, health=dict, ready=lambda: ready)

    got, _, body = await call(public_routes.make_app(routes, "1"), "GET", "/ready")

    assert (got, json.loads(body)) == (status, {"ready": ready})
