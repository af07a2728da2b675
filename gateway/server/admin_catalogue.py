"""The admin routes of `models.toml`: the whole file, its aliases, rollouts, rollback, history and audit log."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast
from urllib.parse import unquote

from quart import Response, request
from quart_trio import QuartTrio

from catalogue.models import Catalogue
from catalogue.nearest import did_you_mean
from gateway import errors
from gateway.aliases.catalogue_edits import Author, CatalogueEdits
from gateway.aliases.catalogue_store import CatalogueStore, ReloadResult
from gateway.aliases.files import toml_edit
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.locked_edit import FileEdit
from gateway.aliases.files.start_rollout import RolloutPlan
from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES
from gateway.server.access.actor import actor
from gateway.server.admin_bodies import RollbackBody, RolloutBody, decode_body, flag
from gateway.server.quart_app import json_response

__all__ = ["TOML", "CatalogueRoutes", "author", "if_match", "mount_catalogue_routes", "reload_json"]

TOML = "application/toml"
HISTORY_LIMIT = 20
LABEL_LIMIT = 200  # characters of what a client says about itself, for the audit log
# What `GET /admin/aliases/{name}` adds to the keys of the file. A PUT may send it back.
_READ_ONLY_KEYS = frozenset({"name", "state", "in_force", "reason"})


@dataclass(frozen=True, slots=True)
class CatalogueRoutes:
    """What the routes use."""

    store: CatalogueStore
    edits: CatalogueEdits


def mount_catalogue_routes(app: QuartTrio, routes: CatalogueRoutes) -> None:
    """Add the routes to the admin application."""
    _mount_file(app, routes)
    _mount_aliases(app, routes)
    _mount_rollouts(app, routes)
    _mount_acknowledgement(app, routes)
    _mount_records(app, routes)


def _mount_file(app: QuartTrio, routes: CatalogueRoutes) -> None:
    @app.get("/admin/catalogue")
    async def get_catalogue() -> Response:
        source = request.args.get("source", "in_force")
        if source not in {"in_force", "disk"}:
            raise errors.BadRequest("`source` must be in_force or disk", param="source")
        data = routes.store.content if source == "in_force" else await routes.edits.read_disk()
        if source == "in_force" and routes.store.current.digest is None:
            raise errors.NotFound("no models.toml is in force")
        response = Response(data, content_type=TOML)
        response.headers["etag"] = f'"{digest_of(data)}"'
        return response

    @app.put("/admin/catalogue")
    async def put_catalogue() -> Response:
        data = cast("bytes", await request.get_data(as_text=False))
        done, result = await routes.edits.put_catalogue(data, if_match(), author())
        return _edit_response(done, result)

    @app.post("/admin/rollback")
    async def roll_back() -> Response:
        body = await decode_body(RollbackBody)
        based_on = if_match() if "if-match" in request.headers else "*"
        done, result = await routes.edits.roll_back(body.alias, body.to, author(), if_match=based_on)
        return _edit_response(done, result)


def _mount_aliases(app: QuartTrio, routes: CatalogueRoutes) -> None:
    @app.get("/admin/aliases/<path:name>")
    async def get_alias(name: str) -> Response:
        catalogue = routes.store.current
        keys = toml_edit.alias_keys(routes.store.content, name) if catalogue.digest else None
        if keys is None:
            raise errors.NotFound(f"alias '{name}' does not exist{did_you_mean(name, catalogue.aliases)}")
        response = json_response({"name": name, **keys, **_alias_state(catalogue, name)})
        response.headers["etag"] = f'"{catalogue.digest}"'
        return response

    @app.put("/admin/aliases/<path:name>")
    async def put_alias(name: str) -> Response:
        body = await decode_body(dict[str, Any])
        keys = alias_keys_of(body)
        force = flag("force")
        done, result = await routes.edits.put_alias(name, keys, if_match(), author(), force=force)
        return _edit_response(done, result)

    @app.delete("/admin/aliases/<path:name>")
    async def delete_alias(name: str) -> Response:
        done, result = await routes.edits.remove_alias(name, if_match(), author())
        return _edit_response(done, result)


def alias_keys_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the file in the JSON of an alias."""
    return {key: value for key, value in body.items() if key not in _READ_ONLY_KEYS and value is not None}


def _alias_state(catalogue: Catalogue, name: str) -> dict[str, Any]:
    """Where requests go now, and whether that is where the file puts them."""
    warming = catalogue.warming.get(name)
    in_force = [asdict(target) for target in catalogue.aliases[name].targets]
    if warming is None:
        return {"state": "in_force", "in_force": in_force}
    return {"state": "failed" if warming.failed else "warming", "in_force": in_force, "reason": warming.failed}


def _mount_rollouts(app: QuartTrio, routes: CatalogueRoutes) -> None:
    @app.get("/admin/aliases/<path:name>/rollout")
    async def get_rollout(name: str) -> Response:
        rollout = (await routes.edits.rollouts()).get(name)
        if rollout is None:
            raise errors.NotFound(f"{name} has never been rolled out")
        return json_response(rollout)

    @app.post("/admin/aliases/<path:name>/rollout")
    async def start_rollout(name: str) -> Response:
        body = await decode_body(RolloutBody)
        plan = RolloutPlan(
            name,
            body.target,
            tuple(body.steps),
            body.every_seconds,
            DEFAULT_TOLERANCES if body.guards is None else body.guards,
            body.min_requests,
        )
        rollout = await routes.edits.start_rollout(plan, author(), force=body.force, from_disk=body.from_disk)
        return json_response(rollout, 202)

    @app.delete("/admin/aliases/<path:name>/rollout")
    async def abort_rollout(name: str) -> Response:
        return json_response(await routes.edits.abort_rollout(name, author()))


def _mount_acknowledgement(app: QuartTrio, routes: CatalogueRoutes) -> None:
    @app.post("/admin/aliases/<path:name>/rollout/acknowledge")
    async def acknowledge_rollback(name: str) -> Response:
        return json_response(await routes.edits.acknowledge_rollback(name))


def _mount_records(app: QuartTrio, routes: CatalogueRoutes) -> None:
    @app.get("/admin/history")
    async def history() -> Response:
        found = await routes.edits.versions(request.args.get("alias"), _limit())
        return json_response({"versions": [asdict(each) | {"aliases": sorted(each.aliases)} for each in found]})

    @app.get("/admin/audit")
    async def audit() -> Response:
        body: dict[str, Any] = {"lines": await routes.edits.audit_lines(_limit())}
        if flag("verify"):
            verification = await routes.edits.verify_audit_log()
            broken = verification.broken
            fields = None if broken is None else asdict(broken) | {"path": str(broken.path)}
            body["verification"] = asdict(verification) | {"broken": fields}
        return json_response(body)


def reload_json(result: ReloadResult) -> dict[str, Any]:
    """The result of reading the file, as `POST /admin/reload` and every edit answer it."""
    return {
        "result": result.result,
        "generation": result.catalogue.generation,
        "digest": result.catalogue.digest,
        "diff": result.diff.as_json(),
        "warming": sorted(result.catalogue.warming),
        "faults": [fault.as_json(with_path=False) for fault in result.faults],
    }


def _edit_response(done: FileEdit, result: ReloadResult) -> Response:
    written = {"written": done.digest, "before": digest_of(done.before), "not_kept": done.not_kept}
    moved_to = None if done.moved_to is None else str(done.moved_to)
    response = json_response(reload_json(result) | written | {"moved_to": moved_to})
    response.headers["etag"] = f'"{done.digest}"'
    return response


def if_match() -> str:
    """The hash that the change is based on, or `*`. Raises PreconditionRequired."""
    value = request.headers.get("if-match", "").strip()
    if not value:
        raise errors.PreconditionRequired(
            "send If-Match with the ETag of GET /admin/catalogue, so that the change of another operator is not undone"
        )
    return value.removeprefix("W/").strip('"')


def author() -> Author:
    """The author for the audit log. A client may add the name of its user and its own command line."""
    user, command = (_label(request.headers.get(f"x-cortex-{name}", "")) for name in ("user", "command"))
    return Author(actor(user), command or f"{request.method} {request.path}")


def _label(text: str) -> str:
    return "".join(char for char in unquote(text) if char.isprintable())[:LABEL_LIMIT]


def _limit() -> int:
    try:
        limit = int(request.args.get("limit", HISTORY_LIMIT))
    except ValueError:
        limit = 0
    if limit < 1:
        raise errors.BadRequest("`limit` must be a positive integer", param="limit")
    return min(limit, sys.maxsize)
