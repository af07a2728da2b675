"""The admin routes of keys. They need the verb `keys`, and grant nothing that the operator's own key lacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from quart import Response
from quart_trio import QuartTrio

from gateway import errors
from gateway.access.admission import TOKEN_KEY
from gateway.access.keys.key_changes import KeyChanges, NotGrantable
from gateway.access.keys.key_fields import InvalidKey
from gateway.access.keys.key_refresh import KeyRefresh
from gateway.access.keys.key_rows import KeyConflict, UnknownKey
from gateway.access.store.database import StoreUnavailable
from gateway.access.store.store import Store
from gateway.server.access.actor import actor, key_of_request
from gateway.server.admin_bodies import decode_body, flag
from gateway.server.quart_app import json_response

__all__ = ["KeyRoutes", "mount_key_routes"]


@dataclass(frozen=True, slots=True)
class KeyRoutes:
    """What the routes use. `record` is `Auditor.record_action`.

    `use` returns how near the key with this id is to its limits; None if it is not in force.
    """

    store: Store
    refresh: KeyRefresh
    record: Callable[..., None]
    currency: str = "USD"
    use: Callable[[str], dict[str, Any] | None] = lambda _: None


def mount_key_routes(app: QuartTrio, routes: KeyRoutes) -> None:
    """Add the routes to the admin application."""

    async def change(what: str, work: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """A change is in force when it is answered, and is in the audit log."""
        with _as_gateway_errors():
            done = await routes.store.run(work)
            await routes.refresh.refresh()
        name, key_id = done["name"], done["id"]
        routes.record("key", actor(), summary=f"{what} key {name}", outcome=done["state"], key=name, key_id=key_id)
        return done

    @app.get("/admin/keys")
    async def list_keys() -> Response:
        with_hashes = flag("hashes")
        with _as_gateway_errors():
            found = await routes.store.read(partial(_changes(routes).list, with_hashes=with_hashes))
        return json_response({"keys": [key | {"use": routes.use(key["id"])} for key in found]})

    @app.post("/admin/keys")
    async def create_key() -> Response:
        fields = await decode_body(dict[str, Any])
        done = await change("create", partial(_changes(routes).create, fields=fields))
        return json_response(done, 201)

    @app.patch("/admin/keys/<path:name_or_id>")
    async def edit_key(name_or_id: str) -> Response:
        fields = await decode_body(dict[str, Any])
        what = "rotate" if fields.get("rotate") else "edit"
        work = partial(_changes(routes).edit, name_or_id=name_or_id, fields=fields)
        return json_response(await change(what, work))

    @app.delete("/admin/keys/<path:name_or_id>")
    async def revoke_key(name_or_id: str) -> Response:
        now = flag("now")
        what = "revoke, with its running requests," if now else "revoke"
        work = partial(_changes(routes).revoke, name_or_id=name_or_id, end_streams=now)
        return json_response(await change(what, work))


def _changes(routes: KeyRoutes) -> KeyChanges:
    grantor = key_of_request()
    if grantor is TOKEN_KEY:  # an operator who has cortex.toml: inference is not what that token withholds
        grantor = replace(grantor, verbs=grantor.verbs | {"infer"})
    return KeyChanges(grantor, routes.currency)


@contextmanager
def _as_gateway_errors() -> Iterator[None]:
    try:
        yield
    except InvalidKey as error:
        raise errors.BadRequest(str(error), param=error.field) from error
    except KeyConflict as error:
        raise errors.Conflict(str(error)) from error
    except UnknownKey as error:
        raise errors.NotFound(str(error)) from error
    except NotGrantable as error:
        kind = errors.VerbNotAllowed if error.field == "verbs" else errors.ModelNotAllowed
        raise kind(
            f"{error}: it can neither grant more than it has nor change a key that has more", param=error.field
        ) from error
    except StoreUnavailable as error:
        raise errors.ServiceUnavailable(f"the store of keys cannot be used now: {error}", retry_after_s=5) from error
