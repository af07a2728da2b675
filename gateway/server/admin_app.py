"""The metrics and admin port: `/metrics` for Prometheus, `/health`, and `/admin/*` for the keys of operators."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import trio
from quart import Response, request
from quart_trio import QuartTrio

from catalogue.load import parse
from catalogue.models import Catalogue
from catalogue.toml.faults import FaultyFile
from gateway import __version__, errors
from gateway.access.admission import Access
from gateway.aliases.catalogue_edits import CatalogueEdits
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.plan import ChangePlan
from gateway.aliases.rollout import RolloutController
from gateway.aliases.warm_swap import WarmSwaps
from gateway.config.settings import LimitSettings
from gateway.fleet.loading.drain import Drains
from gateway.fleet.loading.scheduler import LoadScheduler
from gateway.fleet.routing.queue import QueueView
from gateway.fleet.state import Fleet
from gateway.proxy.shadow.shadower import Shadower
from gateway.proxy.shadow.summary import summary
from gateway.server.access.actor import actor, authenticate_admin
from gateway.server.access.admin_keys import KeyRoutes, mount_key_routes
from gateway.server.access.usage_routes import UsageReports, mount_admin_usage
from gateway.server.admin_bodies import DrainBody, PlacementBody, RollbackBody, decode_body, flag
from gateway.server.admin_catalogue import CatalogueRoutes, alias_keys_of, mount_catalogue_routes, reload_json
from gateway.server.capture.capture import Capture
from gateway.server.capture.capture_routes import mount_capture_routes
from gateway.server.console.console import Console
from gateway.server.console.figures import INTERVAL_S
from gateway.server.console.session_routes import SESSION_PATH, mount_session_routes, session_of_request
from gateway.server.health.shown import health_shown
from gateway.server.models_api import Entry
from gateway.server.neurons.neuron_edits import NeuronEdits
from gateway.server.neurons.neuron_routes import mount_neuron_routes
from gateway.server.neurons.neuron_store import NeuronStore
from gateway.server.openapi.admin import admin_document
from gateway.server.operator_actions import OperatorActions
from gateway.server.quart_app import json_response, mount_document, new_app
from gateway.server.request_views import ended_request_json, keys_of_alias, live_request_json
from gateway.telemetry.explain import explain_requests
from gateway.telemetry.request_log import RequestLog

__all__ = ["AdminContext", "make_app"]


@dataclass(frozen=True, slots=True)
class AdminContext:
    """What the admin routes use.

    `limits` tells how many ended requests the log keeps. `plan` compares two catalogues, old and new.
    """

    access: Access
    keys: KeyRoutes
    usage: UsageReports
    limits: LimitSettings
    catalogue: CatalogueStore
    edits: CatalogueEdits
    neurons: NeuronStore
    fleet: Fleet
    scheduler: LoadScheduler
    drains: Drains
    swaps: WarmSwaps
    rollouts: RolloutController
    shadows: Shadower
    requests: RequestLog
    health: Callable[[], dict[str, Any]]
    models: Callable[[], list[Entry]]
    plan: Callable[[Catalogue, Catalogue], ChangePlan]
    actions: OperatorActions
    metrics: Callable[[str], tuple[bytes, str]]
    queues: Callable[[], Sequence[QueueView]]
    upstream_statistics: Callable[[], Mapping[str, int]]
    console: Console
    capture: Capture


def make_app(context: AdminContext) -> QuartTrio:
    """The Quart application of the metrics port."""
    app = new_app("cortex.admin", lambda _: "no such path; GET /openapi.json lists the paths of this port")
    mount_document(app, admin_document(__version__))

    @app.get("/metrics")
    async def metrics() -> Response:
        body, content_type = context.metrics(request.headers.get("accept", ""))
        return Response(body, content_type=content_type)

    @app.get("/health")
    async def health() -> Response:
        if session_of_request(context.console.sessions) is not None:  # it has the verb `read`
            return json_response(context.health())
        return json_response(health_shown(context.access, context.health()))

    @app.before_request
    async def authenticate() -> None:
        if request.path.startswith("/admin/") and request.path != SESSION_PATH:
            session = None if "authorization" in request.headers else session_of_request(context.console.sessions)
            authenticate_admin(context.access, None if session is None else session.operator)

    mount_session_routes(app, context.console.sessions, context.console.describe)
    _mount_catalogue(app, context)
    _mount_plans(app, context)
    mount_key_routes(app, context.keys)
    mount_capture_routes(app, context.capture, context.catalogue)
    mount_admin_usage(app, context.usage)
    mount_catalogue_routes(app, CatalogueRoutes(context.catalogue, context.edits))
    mount_neuron_routes(app, NeuronEdits(context.neurons, context.edits.audit_log))
    _mount_requests(app, context)
    _mount_fleet(app, context)
    _mount_models(app, context)
    return app


def _mount_catalogue(app: QuartTrio, context: AdminContext) -> None:
    @app.post("/admin/reload")
    async def reload() -> Response:
        neurons = await context.neurons.reload(actor=actor())
        result = await context.catalogue.reload(actor=actor())
        body = reload_json(result) | {"neurons": neurons.as_json()}
        return json_response(body, 422 if result.faults or neurons.faults else 200)

    @app.get("/admin/rollouts")
    async def rollouts() -> Response:
        body: dict[str, Any] = {"rollouts": context.rollouts.views()}
        if flag("stored"):
            body["stored"] = list((await context.edits.rollouts()).values())
        return json_response(body)

    @app.post("/admin/swaps/<path:alias>/retry")
    async def retry(alias: str) -> Response:
        if not context.swaps.retry(alias):
            raise errors.NotFound(f"alias '{alias}' has no failed swap to retry")
        return json_response({"alias": alias, "warming": sorted(context.catalogue.current.warming)})

    @app.get("/admin/shadows/<path:alias>")
    async def compare(alias: str) -> Response:
        if alias not in context.catalogue.current.aliases:
            raise errors.NotFound(f"alias '{alias}' does not exist")
        return json_response(summary(context.shadows.report(alias)))


def _mount_plans(app: QuartTrio, context: AdminContext) -> None:
    def plan_json(in_force: Catalogue, wanted: Catalogue) -> dict[str, Any]:
        body = context.plan(in_force, wanted).as_json()
        return body | {"generation": in_force.generation, "warnings": [fault.as_json() for fault in wanted.warnings]}

    @app.post("/admin/plan")
    async def plan() -> Response:
        data = cast("bytes", await request.get_data(as_text=False))
        in_force = context.catalogue.current
        path = request.args.get("path", "models.toml")
        try:
            wanted = parse(data, path=path, generation=in_force.generation + 1, loaded_at=time.time())
        except FaultyFile as error:
            return json_response({"verdict": "faulty", "faults": [fault.as_json() for fault in error.faults]})
        return json_response(plan_json(in_force, wanted))

    def plan_response(in_force: Catalogue, wanted: Catalogue, alias: str | None) -> Response:
        keys = [] if alias is None else keys_of_alias(context.requests, alias)
        response = json_response(plan_json(in_force, wanted) | {"keys": keys})
        response.headers["etag"] = f'"{in_force.digest}"'
        return response

    @app.post("/admin/aliases/<path:name>/plan")
    async def plan_alias(name: str) -> Response:
        body = await decode_body(dict[str, Any])
        in_force = context.catalogue.current
        return plan_response(in_force, await context.edits.edited_alias(name, alias_keys_of(body)), name)

    @app.post("/admin/rollback/plan")
    async def plan_rollback() -> Response:
        body = await decode_body(RollbackBody)
        in_force = context.catalogue.current
        return plan_response(in_force, await context.edits.rolled_back(body.alias, body.to), body.alias)


def _mount_requests(app: QuartTrio, context: AdminContext) -> None:
    @app.get("/admin/requests")
    async def requests() -> Response:
        now, log = trio.current_time(), context.requests
        body: dict[str, Any] = {"requests": [live_request_json(record, now) for record in log.live.values()]}
        if flag("recent"):
            body["recent"] = [ended_request_json(record) for record in log.recent.newest_first()]
        return json_response(body)

    @app.get("/admin/figures")
    async def figures() -> Response:
        return json_response({"interval_s": INTERVAL_S, "points": list(context.console.figures.points)})

    @app.get("/admin/requests/<path:request_id>")
    async def explain(request_id: str) -> Response:
        found = explain_requests(request_id, context.requests, context.scheduler.loads_between, trio.current_time())
        if not found:
            raise errors.NotFound(
                f"request '{request_id}' is neither running nor among the last {context.limits.explain_requests} that"
                f" ended, or the last {context.limits.explain_refused} that were refused"
            )
        return json_response({"requests": found})

    @app.delete("/admin/requests/<request_id>")
    async def cancel(request_id: str) -> Response:
        found = [record for record in context.requests.live.values() if record.request_id == request_id]
        if not found:
            raise errors.NotFound(f"request '{request_id}' is not running")
        for record in found:
            record.cancel(errors.ServiceUnavailable("cancelled by an operator"))
        return json_response({"cancelled": len(found)})


def _mount_fleet(app: QuartTrio, context: AdminContext) -> None:
    def known(name: str) -> str:
        if name not in context.fleet.nodes:
            neurons = ", ".join(context.fleet.nodes) or "none"
            raise errors.NotFound(f"neuron '{name}' does not exist; configured neurons: {neurons}")
        return name

    @app.get("/admin/fleet")
    async def fleet() -> Response:
        body = {
            "health": context.health(),
            "nodes": context.fleet.snapshot().nodes,
            "leaving": {name: node.leases for name, node in context.fleet.leaving.items()},
            "drains": [context.drains.view(name) for name in context.fleet.nodes],
            "loads": context.scheduler.loads(),
            "failing": context.scheduler.failing(),
            "queue": context.queues(),
            "swaps": context.swaps.views(),
            "upstream": context.upstream_statistics(),
            "now": trio.current_time(),
        }
        return json_response(body)

    @app.get("/admin/nodes/<name>")
    async def node(name: str) -> Response:
        return json_response(context.drains.view(known(name)))

    @app.post("/admin/nodes/<name>/drain")
    async def drain(name: str) -> Response:
        body = await decode_body(DrainBody)
        return json_response(await context.actions.drain(known(name), actor(), move=body.move))

    @app.post("/admin/nodes/<name>/undrain")
    async def undrain(name: str) -> Response:
        return json_response(await context.actions.undrain(known(name), actor()))


def _mount_models(app: QuartTrio, context: AdminContext) -> None:
    @app.get("/admin/models")
    async def models() -> Response:
        return json_response({"object": "list", "data": context.models()})

    @app.post("/admin/load")
    async def load() -> Response:
        body = await decode_body(PlacementBody)
        loading = context.actions.load(body.model, body.node, actor())
        return json_response(loading, 200 if loading.state == "loaded" else 202)

    @app.post("/admin/unload")
    async def unload() -> Response:
        body = await decode_body(PlacementBody)
        return json_response(context.actions.unload(body.model, body.node, actor()), 202)
