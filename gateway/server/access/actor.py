"""Which key an admin request came with, and its name for the audit log."""

from __future__ import annotations

from typing import cast

from quart import g, request

from gateway.access.admission import TOKEN_KEY, Access, require_verb
from gateway.access.keys.key import Key, Verb
from gateway.server.access.operators import key_of
from gateway.server.console.sessions import Operator
from gateway.server.quart_app import raw_headers

__all__ = ["actor", "authenticate_admin", "key_of_request"]


def authenticate_admin(access: Access, operator: Operator | None) -> None:
    """Check the key of the current request, or of the operator of its session, and remember it.

    Raises:
        InvalidApiKey, VerbNotAllowed: By their names.
    """
    verb = _needed_verb(request.method, request.path)
    if operator is None:
        g.key = access.authenticate_operator(raw_headers(), verb)
    else:
        g.key = key_of(operator, access)
        require_verb(g.key, verb)


def key_of_request() -> Key:
    """The key of the current admin request."""
    return cast("Key", g.key)


def actor(user: str = "") -> str:
    """The operator's name for the audit log: that of the key, with its id, and the user whom the client names."""
    key = key_of_request()
    details = ([] if key is TOKEN_KEY else [f"key {key.id}"]) + ([user] if user else [])
    return f"{key.name} ({', '.join(details)})" if details else key.name


def _needed_verb(method: str, path: str) -> Verb:
    if path == "/admin/keys" or path.startswith("/admin/keys/"):
        return "keys"
    is_plan = path in {"/admin/plan", "/admin/rollback/plan"} or (
        method == "POST" and path.startswith("/admin/aliases/") and path.endswith("/plan")
    )
    return "read" if method in {"GET", "HEAD"} or is_plan else "operate"
