"""The paths of keys, for the OpenAPI document of the metrics and admin port."""

from __future__ import annotations

from gateway.access.keys.key_changes import IMPORTED_FIELDS
from gateway.access.keys.key_fields import FIELDS, VERBS
from gateway.server.openapi.schemas import (
    ERRORS,
    JSON,
    STRING,
    Json,
    list_schema,
    object_schema,
    path_parameter,
    response,
)

__all__ = ["key_paths"]

_STRINGS = list_schema(STRING)
_OPTIONAL_COUNT: Json = {"type": ["integer", "null"], "minimum": 1}
_OPTIONAL_TIME: Json = {"type": ["number", "null"], "description": "Unix seconds."}
_SETTINGS: Json = {
    "name": STRING,
    "may": {**_STRINGS, "description": "Globs over the models and aliases that the key may ask for."},
    "verbs": list_schema({"enum": list(VERBS)}),
    "rpm": _OPTIONAL_COUNT,
    "tpm": _OPTIONAL_COUNT,
    "concurrency": _OPTIONAL_COUNT,
    "budgets": {**_STRINGS, "description": "UNIT AMOUNT/WINDOW, for example `usd 20/month`."},
    "observe": {**_STRINGS, "description": "Limits that are counted and refuse nothing."},
    "weight": {"type": "integer", "minimum": 1},
    "priority": {"enum": ["interactive", "batch"]},
    "expires_at": _OPTIONAL_TIME,
}
_KEY = object_schema(
    {
        "secret": {**STRING, "description": "Only in the answer that creates or rotates it."},
        "id": STRING,
        **_SETTINGS,
        "state": {"enum": ["active", "expired", "revoked"]},
        "created_at": {"type": "number"},
        "revoked_at": _OPTIONAL_TIME,
        "old_secret_until": _OPTIONAL_TIME,
        "secret_sha256": STRING,
        "use": {"type": ["object", "null"], "description": "How near it is to its limits. Only in lists."},
    },
    "secret",
    "secret_sha256",
    "use",
)
_GIVEN: Json = {**_SETTINGS, "expires": {**STRING, "description": "From now on, for example `90d`; or `never`."}}
_CREATED = object_schema(
    {**_GIVEN, "id": STRING, "secret_sha256": STRING, "created_at": {"type": "number"}},
    *((_GIVEN.keys() | IMPORTED_FIELDS) - {"name"}),
)
_EDITED = object_schema({**_GIVEN, "rotate": {"type": "boolean"}, "grace": STRING}, *_GIVEN, "rotate", "grace")

if FIELDS.keys() != _GIVEN.keys():
    raise AssertionError("the document must describe every field of a key")


def key_paths(security: Json) -> Json:
    """The paths. `security` is that of every operation."""
    name = path_parameter("name_or_id")

    def operation(summary: str, status: str, schema: Json, *parameters: Json, body: Json | None = None) -> Json:
        found: Json = {
            "summary": summary,
            "parameters": list(parameters),
            "responses": {
                status: response("OK.", {JSON: {"schema": schema}}),
                "400": response("A field is wrong.", ERRORS),
                "401": response("The key is missing or wrong.", ERRORS),
                "403": response("The key lacks the verb `keys`, or what it would grant.", ERRORS),
                "404": response("No such key.", ERRORS),
                "409": response("The name is taken, or the key was revoked.", ERRORS),
                "503": response("The store cannot be used now.", ERRORS),
            },
            **security,
        }
        if body is not None:
            found["requestBody"] = {"required": True, "content": {JSON: {"schema": body}}}
        return found

    def flag(text: str) -> Json:
        return {"name": text, "in": "query", "schema": {"type": "boolean"}}

    return {
        "/admin/keys": {
            "get": operation("List keys", "200", object_schema({"keys": list_schema(_KEY)}), flag("hashes")),
            "post": operation("Create a key; with the hash of a secret, import it", "201", _KEY, body=_CREATED),
        },
        "/admin/keys/{name_or_id}": {
            "patch": operation("Edit a key, or give it a new secret", "200", _KEY, name, body=_EDITED),
            "delete": operation("Revoke a key; with `now` its running requests end", "200", _KEY, name, flag("now")),
        },
    }
