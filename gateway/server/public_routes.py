"""The public port's lookups: `/v1/models`, `/health`, `/ready`, `/`, `/openapi.json`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import structlog
from quart import Response, g, request
from quart_trio import QuartTrio

from catalogue.nearest import did_you_mean
from gateway import errors
from gateway.access.admission import Access, require_verb
from gateway.access.keys import scope
from gateway.access.keys.key import Key
from gateway.fleet.control.engine_client import POLLED_BY
from gateway.server import models_anthropic, path_hints
from gateway.server.access.usage_routes import UsageReports, mount_own_usage
from gateway.server.console.public_page import PAGE_HEADERS, public_page, wants_html
from gateway.server.health.shown import health_shown
from gateway.server.models_api import Entry
from gateway.server.openapi.public import public_document
from gateway.server.quart_app import (
    ANTHROPIC_VERSION,
    json_bytes_response,
    json_response,
    mount_document,
    new_app,
    raw_headers,
)
from gateway.telemetry.printable import hide_secret

__all__ = ["PublicRoutes", "make_app"]


log = structlog.get_logger("cortex.routes")

LOGGED_PATH_CHARACTERS = 200
_WITHOUT_KEY = frozenset({"/", "/health", "/ready", "/openapi.json"})


@dataclass(frozen=True, slots=True)
class PublicRoutes:
    """Functions that return what each route shows at the moment of the call. `model` returns None for an unknown id.

    `count_unknown_path` is called for every request to a path that does not exist. `instance` is this gateway's id in
    the polls that it sends. `console_url` returns the address of the console for a browser that knows this gateway by
    the given host; None if it cannot reach it.
    """

    models: Callable[[], list[Entry]]
    model: Callable[[str], Entry | None]
    health: Callable[[], dict[str, Any]]
    ready: Callable[[], bool]
    count_unknown_path: Callable[[], object]
    access: Access = field(default_factory=Access)
    usage: UsageReports | None = None
    instance: str = ""
    console_url: Callable[[str], str | None] = lambda _: None


def make_app(routes: PublicRoutes, version: str) -> QuartTrio:
    """The Quart application of the public port."""

    def unknown_path(path: str) -> str:
        log.info("unknown_path", method=request.method, path=hide_secret(path)[:LOGGED_PATH_CHARACTERS])
        routes.count_unknown_path()
        return path_hints.hint(path)

    app = new_app("cortex", unknown_path)
    mount_document(app, public_document(version))

    _mount_models(app, routes)
    if routes.usage is not None:
        _mount_limits(app, routes.usage)
    mount_own_usage(app, routes.usage, lambda: g.key)

    @app.before_request
    async def authenticate() -> None:
        _refuse_own_poll(routes)
        if request.path in _WITHOUT_KEY or request.method == "OPTIONS":
            return
        g.key = key = routes.access.authenticate(raw_headers())
        if key is not None and request.path.startswith("/v1/") and not key.verbs & {"infer", "read"}:
            require_verb(key, "infer")

    @app.get("/health")
    async def health() -> Response:
        return json_response(health_shown(routes.access, routes.health()))

    @app.get("/ready")
    async def ready() -> Response:
        is_ready = routes.ready()
        return json_response({"ready": is_ready}, 200 if is_ready else 503)

    @app.get("/")
    async def root() -> Response:
        if wants_html(request.headers.get("accept", "")):
            return _page(routes)
        response = json_response({"name": "cortex", "version": version, **health_shown(routes.access, routes.health())})
        response.headers["vary"] = "accept"
        return response

    return app


def _refuse_own_poll(routes: PublicRoutes) -> None:
    """A neuron of this gateway is this gateway, under a name that its configuration does not show to be its own."""
    if routes.instance and request.headers.get(POLLED_BY) == routes.instance:
        raise errors.Conflict("this neuron is the gateway that polls it: remove it from [[neurons]]")


def _page(routes: PublicRoutes) -> Response:
    """The root for a browser, which sends no key."""
    host = request.host
    is_tls = "https" in {request.scheme, request.headers.get("x-forwarded-proto", "")}
    needs_key = routes.access.mode == "keys"
    page = public_page(
        origin=f"{'https' if is_tls else 'http'}://{host}",
        status=routes.health()["status"],
        models=None if needs_key else routes.models(),
        needs_key=needs_key,
        console=routes.console_url(urlsplit(f"//{host}").hostname or ""),
    )
    response = Response(page, content_type="text/html; charset=utf-8")
    for name, value in PAGE_HEADERS:
        response.headers[name.decode()] = value.decode()
    response.headers["vary"] = "accept"
    return response


def _mount_limits(app: QuartTrio, usage: UsageReports) -> None:
    @app.after_request
    async def show_limits(response: Response) -> Response:
        """Errors have them too: every answer to a limited key tells how much is left."""
        key: Key | None = g.get("key")
        if key is not None:
            for name, value in usage.limit_headers(key, anthropic=ANTHROPIC_VERSION in request.headers):
                response.headers[name.decode()] = value.decode()
        return response


def _mount_models(app: QuartTrio, routes: PublicRoutes) -> None:
    @app.get("/v1/models")
    async def list_models() -> Response:
        entries = [entry for entry in routes.models() if _may_see(entry.id)]
        if ANTHROPIC_VERSION in request.headers:
            return json_bytes_response(models_anthropic.listing(entries, request.args))
        return json_response({"object": "list", "data": entries})

    @app.get("/v1/models/<path:model_id>")
    async def get_model(model_id: str) -> Response:
        entry = routes.model(model_id) if _may_see(model_id) else None
        if entry is None:
            hint = did_you_mean(model_id, (each.id for each in routes.models() if _may_see(each.id)))
            raise errors.ModelNotFound(
                f"model '{model_id}' not found{hint or '; GET /v1/models lists the available models'}", param="model"
            )
        if ANTHROPIC_VERSION in request.headers:
            return json_bytes_response(models_anthropic.single(entry))
        return json_response(entry)


def _may_see(name: str) -> bool:
    """Whether the key of the current request may use the model or alias."""
    key: Key | None = g.key
    return key is None or scope.allows(key.may, name)
