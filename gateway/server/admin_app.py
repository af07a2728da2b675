"""The metrics and admin port: `/metrics` for Prometheus, `/admin/*` for operators with the token. No logic."""

from __future__ import annotations

import hmac
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar, cast

import msgspec
import trio
from quart import Response, request
from quart_trio import QuartTrio

from catalogue.load import parse
from catalogue.models import FaultyFile
from gateway import __version__, errors
from gateway.aliases.auditor import acting
from gateway.proxy.shadow.summary import summary
from gateway.server import openapi
from gateway.server.admin_bodies import Drain, Placed
from gateway.server.public_app import json_response, mount_document, new_app
from gateway.telemetry.explain import stories
from gateway.telemetry.metrics import CONTENT_TYPE
from gateway.telemetry.request_record import Record

if TYPE_CHECKING:
    from gateway.server.main import Gateway

__all__ = ["make_app"]

ADMIN = "admin"  # what the audit trail calls whoever has the token


def make_app(gateway: Gateway) -> QuartTrio:
    """The Quart application of the metrics port."""
    app = new_app("cortex.admin")
    mount_document(app, openapi.admin(__version__))

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(gateway.metrics.expose(), content_type=CONTENT_TYPE)

    @app.get("/health")
    async def health() -> Response:
        return json_response(gateway.health())

    @app.before_request
    async def authorise() -> None:
        if request.path.startswith("/admin/"):
            _check_token(gateway.settings.admin.token, request.headers.get("authorization", ""))

    _mount_catalogue(app, gateway)
    _mount_requests(app, gateway)
    _mount_fleet(app, gateway)
    _mount_shadows(app, gateway)
    _mount_models(app, gateway)
    return app


def _mount_catalogue(app: QuartTrio, gateway: Gateway) -> None:
    @app.post("/admin/reload")
    async def reload() -> Response:
        with acting(ADMIN):
            result = await gateway.keeper.reload()
        faults = [{"line": f.line, "key": f.key, "message": f.message, "hint": f.hint} for f in result.faults]
        body = {
            "result": result.result,
            "generation": result.catalogue.generation,
            "digest": result.catalogue.digest,
            "diff": result.diff.as_json(),
            "warming": sorted(result.catalogue.warming),
            "faults": faults,
        }
        return json_response(body, 422 if faults else 200)

    @app.post("/admin/plan")
    async def plan() -> Response:
        data = cast("bytes", await request.get_data(as_text=False))
        in_force = gateway.keeper.current
        path = request.args.get("path", "models.toml")
        try:
            wanted = parse(data, path=path, generation=in_force.generation + 1, loaded_at=time.time())
        except FaultyFile as error:
            return json_response({"verdict": "faulty", "faults": [asdict(fault) for fault in error.faults]})
        told = gateway.plan(in_force, wanted).as_json()
        return json_response(
            told | {"generation": in_force.generation, "warnings": [asdict(fault) for fault in wanted.warnings]}
        )

    @app.get("/admin/rollouts")
    async def rollouts() -> Response:
        return json_response({"rollouts": gateway.rollouts.views()})

    @app.post("/admin/swaps/<path:alias>/retry")
    async def retry(alias: str) -> Response:
        if not gateway.swaps.retry(alias):
            raise errors.NotFound(f"no alias '{alias}' is waiting for a swap that failed")
        return json_response({"alias": alias, "warming": sorted(gateway.keeper.current.warming)})


def _mount_requests(app: QuartTrio, gateway: Gateway) -> None:
    @app.get("/admin/requests")
    async def requests() -> Response:
        return json_response({"requests": [_request(record) for record in gateway.accounts.live.values()]})

    @app.get("/admin/requests/<path:request_id>")
    async def explain(request_id: str) -> Response:
        told = stories(request_id, gateway.accounts, gateway.lifecycle, trio.current_time())
        if not told:
            remembered = gateway.settings.limits.explain_requests
            raise errors.NotFound(f"no request '{request_id}' is under way or among the last {remembered} that ended")
        return json_response({"requests": told})

    @app.delete("/admin/requests/<request_id>")
    async def cancel(request_id: str) -> Response:
        found = [record for record in gateway.accounts.live.values() if record.request_id == request_id]
        if not found:
            raise errors.NotFound(f"no request '{request_id}' is under way")
        for record in found:
            record.cancel(errors.ServiceUnavailable("cancelled by an operator"))
        return json_response({"cancelled": len(found)})


def _mount_fleet(app: QuartTrio, gateway: Gateway) -> None:
    @app.get("/admin/fleet")
    async def fleet() -> Response:
        return json_response(_fleet(gateway))

    @app.get("/admin/nodes/<name>")
    async def node(name: str) -> Response:
        return json_response(gateway.drains.view(_known(gateway, name)))

    @app.post("/admin/nodes/<name>/drain")
    async def drain(name: str) -> Response:
        asked = await _body(Drain)
        return json_response(gateway.drains.drain(_known(gateway, name), move=asked.move))

    @app.post("/admin/nodes/<name>/undrain")
    async def undrain(name: str) -> Response:
        return json_response(gateway.drains.undrain(_known(gateway, name)))


def _known(gateway: Gateway, name: str) -> str:
    if name not in gateway.fleet.nodes:
        raise errors.NotFound(f"no neuron is called '{name}'; there are {', '.join(gateway.fleet.nodes)}")
    return name


def _mount_models(app: QuartTrio, gateway: Gateway) -> None:
    @app.post("/admin/load")
    async def load() -> Response:
        asked = await _body(Placed)
        loading = gateway.orders.load(asked.model, asked.node)
        return json_response(loading, 200 if loading.state == "loaded" else 202)

    @app.post("/admin/unload")
    async def unload() -> Response:
        asked = await _body(Placed)
        return json_response(gateway.orders.unload(asked.model, asked.node), 202)


_Body = TypeVar("_Body")


async def _body(kind: type[_Body]) -> _Body:
    """The request's body as `kind`. Raises MalformedJson."""
    data = await request.get_data(as_text=False)
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except msgspec.MsgspecError as error:
        raise errors.MalformedJson(f"this wants JSON: {error}") from error


def _mount_shadows(app: QuartTrio, gateway: Gateway) -> None:
    @app.get("/admin/shadows/<path:alias>")
    async def compare(alias: str) -> Response:
        if alias not in gateway.keeper.current.aliases:
            raise errors.NotFound(f"no alias is called '{alias}'")
        return json_response(summary(gateway.shadows.verdict(alias)))


def _check_token(expected: str | None, header: str) -> None:
    if expected is None:
        raise errors.NotFound("the admin API is off: set [admin] token in cortex.toml to turn it on")
    if not hmac.compare_digest(header.removeprefix("Bearer ").encode(), expected.encode()):
        told = "that is another token than the admin API's" if header else "the admin API wants its token"
        raise errors.InvalidApiKey(f"{told}: authorization: Bearer <[admin] token>")


def _fleet(gateway: Gateway) -> dict[str, Any]:
    return {
        "health": gateway.health(),
        "nodes": gateway.fleet.snapshot().nodes,
        "drains": [gateway.drains.view(name) for name in gateway.fleet.nodes],
        "loads": gateway.lifecycle.loads(),
        "failing": gateway.lifecycle.failing(),
        "queue": gateway.inference.admission.lines(),
        "swaps": gateway.swaps.views(),
        "upstream": gateway.upstream.statistics(),
        "now": trio.current_time(),
    }


def _request(record: Record) -> dict[str, Any]:
    return {
        "request_id": record.request_id,
        "path": record.path,
        "alias": record.alias,
        "model": record.model,
        "node": record.node,
        "state": record.state,
        "position": record.turn.position if record.turn is not None else None,
        "stream": record.stream,
        "elapsed_s": round(trio.current_time() - record.started_at, 3),
        "retries": record.retries,
    }
