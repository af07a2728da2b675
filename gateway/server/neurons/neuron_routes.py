"""The admin routes of the file of the neurons."""

from __future__ import annotations

from typing import cast

from quart import Response, request
from quart_trio import QuartTrio

from gateway.server.admin_bodies import NeuronRollbackBody, decode_body
from gateway.server.admin_catalogue import TOML, author, if_match
from gateway.server.neurons.neuron_edits import NeuronEdits
from gateway.server.neurons.neuron_store import NeuronReload
from gateway.server.quart_app import json_response

__all__ = ["mount_neuron_routes"]


def mount_neuron_routes(app: QuartTrio, edits: NeuronEdits) -> None:
    """Add the routes to the admin application."""

    @app.get("/admin/neurons")
    async def get_neurons() -> Response:
        content, digest = edits.read()
        response = Response(content, content_type=TOML)
        response.headers["etag"] = f'"{digest}"'
        return response

    @app.put("/admin/neurons")
    async def put_neurons() -> Response:
        data = cast("bytes", await request.get_data(as_text=False))
        return _edited(*await edits.put(data, if_match(), author().who))

    @app.post("/admin/neurons/rollback")
    async def roll_back_neurons() -> Response:
        body = await decode_body(NeuronRollbackBody)
        return _edited(*await edits.roll_back(body.to, author().who))


def _edited(digest: str, result: NeuronReload) -> Response:
    response = json_response(result.as_json() | {"written": digest})
    response.headers["etag"] = f'"{digest}"'
    return response
