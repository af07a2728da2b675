"""`/admin/capture`: start, show and stop a capture. To start one, and to see texts, needs the verb `operate`."""

from __future__ import annotations

import msgspec
from quart import Response
from quart_trio import QuartTrio

from gateway import errors
from gateway.access.admission import require_verb
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.server.access.actor import actor, key_of_request
from gateway.server.admin_bodies import decode_body
from gateway.server.capture.capture import Capture
from gateway.server.quart_app import json_response

__all__ = ["CaptureBody", "mount_capture_routes"]


class CaptureBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which alias, for how long, and whether to redact its texts."""

    alias: str
    seconds: float = 600.0
    redact: bool = False


def mount_capture_routes(app: QuartTrio, capture: Capture, catalogue: CatalogueStore) -> None:
    """Add the routes to the admin application."""

    @app.get("/admin/capture")
    async def show() -> Response:
        if capture.running is not None:
            require_verb(key_of_request(), "operate")  # a key that reads sees no texts
        entries = [] if capture.running is None else list(capture.running.entries)
        return json_response({"capture": capture.status(), "requests": entries})

    @app.post("/admin/capture")
    async def start() -> Response:
        body = await decode_body(CaptureBody)
        if body.alias not in catalogue.current.aliases:
            raise errors.NotFound(f"alias '{body.alias}' does not exist")
        capture.start(body.alias, body.seconds, actor(), is_redacted=body.redact)
        return json_response({"capture": capture.status()}, 201)

    @app.delete("/admin/capture")
    async def stop() -> Response:
        capture.stop(actor())
        return json_response({"capture": None})
