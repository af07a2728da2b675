"""The OpenAPI document of the metrics and admin port."""

from __future__ import annotations

import msgspec

from gateway.aliases.warm_swap import SwapView
from gateway.fleet.loading.drain import DrainView
from gateway.fleet.loading.load_history import LoadView
from gateway.fleet.loading.manual import LoadResponse, UnloadResponse
from gateway.fleet.routing.queue import QueueView
from gateway.fleet.snapshot import NodeSnapshot
from gateway.server.admin_bodies import DrainBody, NeuronRollbackBody, PlacementBody, RollbackBody, RolloutBody
from gateway.server.openapi.console import console_paths
from gateway.server.openapi.keys import key_paths
from gateway.server.openapi.schemas import (
    ADMIN_TYPES,
    COUNT,
    ERRORS,
    JSON,
    STRING,
    TEXT,
    TOML,
    Json,
    component_schemas,
    document,
    health_schema,
    list_schema,
    lookup,
    object_schema,
    path_parameter,
    reference,
    response,
)
from gateway.server.openapi.usage import USAGE_PARAMETERS, usage_schema

__all__ = ["admin_document"]


def admin_document(version: str) -> bytes:
    """The document of the metrics and admin port."""
    components = {
        "schemas": component_schemas(ADMIN_TYPES),
        "securitySchemes": {
            "key": {"type": "http", "scheme": "bearer", "description": "A key: ctx_…"},
            "session": {"type": "apiKey", "in": "cookie", "name": "cortex_session_PORT"},
        },
    }
    paths = _administration() | _catalogue_paths() | console_paths() | key_paths(_SECURITY)
    return document("cortex: metrics and administration", version, paths, components)


_SECURITY: Json = {"security": [{"key": []}, {"session": []}]}
_LISTED = list_schema({"type": "object"})
_REQUESTS = object_schema({"requests": _LISTED})


def _administration() -> Json:
    fleet = object_schema(
        {
            "health": health_schema(),
            "nodes": list_schema(reference(NodeSnapshot)),
            "leaving": {"type": "object", "additionalProperties": COUNT},
            "loads": list_schema(reference(LoadView)),
            "queue": list_schema(reference(QueueView)),
            "swaps": list_schema(reference(SwapView)),
            "upstream": {"type": "object", "additionalProperties": COUNT},
            "now": {"type": "number"},
        }
    )
    reload = object_schema(
        {
            "result": STRING,
            "generation": COUNT,
            "diff": {"type": "object"},
            "faults": list_schema({}),
            "neurons": {"type": "object"},
        }
    )
    drain = reference(DrainView)
    request_id, alias = path_parameter("request_id"), path_parameter("alias")
    return {
        "/metrics": {
            "get": {
                "summary": "Metrics in the Prometheus text format",
                "responses": {"200": response("OK.", {TEXT: {}})},
            }
        },
        "/health": lookup("Health of the gateway", health_schema()),
        "/openapi.json": lookup("This document", {"type": "object"}),
        "/admin/reload": {
            "post": _admin_operation("Reload models.toml", reload)
            | {
                "responses": _admin_responses(reload)
                | {"422": response("The file is faulty and not in force.", {JSON: {"schema": reload}})}
            }
        },
        "/admin/plan": {
            "post": {
                **_admin_operation(
                    "Show what a models.toml would change, load and evict", object_schema({"verdict": STRING})
                ),
                "parameters": [{"name": "path", "in": "query", "schema": STRING}],
                "requestBody": {"content": {TEXT: {"schema": STRING}}},
            }
        },
        "/admin/rollouts": {
            "get": _admin_operation(
                "List running rollouts", object_schema({"rollouts": list_schema({"type": "object"})})
            )
        },
        "/admin/swaps/{alias}/retry": {
            "post": _admin_operation("Retry the failed swap of an alias", {"type": "object"}, alias)
        },
        "/admin/shadows/{alias}": {
            "get": _admin_operation("Compare an alias with its shadow", {"type": "object"}, alias)
        },
        "/admin/requests": {
            "get": _admin_operation(
                "List running requests, and with `recent` those that ended",
                object_schema({"requests": _LISTED, "recent": _LISTED}, "recent"),
                {"name": "recent", "in": "query", "schema": {"type": "boolean"}},
            )
        },
        "/admin/requests/{request_id}": {
            "get": _admin_operation("Explain a request: routing, waiting, attempts, outcome", _REQUESTS, request_id),
            "delete": _admin_operation("Cancel a request", object_schema({"cancelled": COUNT}), request_id),
        },
        "/admin/fleet": {"get": _admin_operation("Show neurons, loads, queues and connections", fleet)},
        "/admin/usage": {
            "get": _admin_operation("Report usage", usage_schema(), *USAGE_PARAMETERS)
            | {"responses": _admin_responses(usage_schema()) | {"400": response("Invalid query parameter.", ERRORS)}}
        },
        "/admin/models": {
            "get": _admin_operation(
                "List models and aliases, as GET /v1/models does",
                object_schema({"object": {"const": "list"}, "data": list_schema({"type": "object"})}),
            )
        },
        "/admin/load": {"post": _placement("Load a model", LoadResponse)},
        "/admin/unload": {"post": _placement("Unload a model", UnloadResponse)},
        "/admin/nodes/{name}": {
            "get": _admin_operation("Show the drain state of a neuron", drain, path_parameter("name"))
        },
        "/admin/nodes/{name}/drain": {
            "post": _with_body(
                _admin_operation("Drain a neuron: send it no new requests", drain, path_parameter("name")),
                DrainBody,
                required=False,
            )
        },
        "/admin/nodes/{name}/undrain": {
            "post": _admin_operation("End the drain of a neuron", drain, path_parameter("name"))
        },
    }


def _catalogue_paths() -> Json:
    """Those of `admin_catalogue.py`."""
    alias, file = path_parameter("name"), {"content": {TOML: {"schema": STRING}}}
    edited = object_schema({"result": STRING, "generation": COUNT, "digest": STRING, "written": STRING})
    if_match = {"name": "if-match", "in": "header", "required": True, "schema": STRING}
    limit = {"name": "limit", "in": "query", "schema": {"type": "integer", "minimum": 1}}
    invalid_query = {"400": response("Invalid query parameter.", ERRORS)}
    refusals = {
        "400": response("Invalid body.", ERRORS),
        "409": response("The change contradicts the present state.", ERRORS),
        "412": response("The file on disk is another one.", ERRORS),
        "422": response("The change would make the file faulty.", ERRORS),
        "428": response("If-Match is missing.", ERRORS),
    }

    def change(summary: str, schema: Json, *parameters: Json) -> Json:
        operation = _admin_operation(summary, schema, *parameters)
        return operation | {"responses": operation["responses"] | refusals}

    get_file = _admin_operation("Get models.toml: the file in force, or that on disk", STRING)
    get_file["responses"] |= invalid_query | {"200": response("The file; `ETag` is its hash.", file["content"])}
    get_file["parameters"] = [{"name": "source", "in": "query", "schema": {"enum": ["in_force", "disk"]}}]
    get_neurons = _admin_operation("Get the file of the neurons, with *** in place of each secret", STRING)
    get_neurons["responses"] |= {
        "200": response("The file; `ETag` is its hash.", file["content"]),
        "409": response("The neurons are in cortex.toml.", ERRORS),
    }
    edited_neurons = object_schema({"result": STRING, "diff": {"type": ["object", "null"]}, "written": STRING})
    anything, rollout = {"type": "object"}, change("Start a rollout", {"type": "object"}, alias)
    history = _admin_operation(
        "List the versions of models.toml",
        object_schema({"versions": list_schema(anything)}),
        {"name": "alias", "in": "query", "schema": STRING},
        limit,
    )
    audit = _admin_operation(
        "Show or verify the audit log",
        object_schema({"lines": list_schema(anything), "verification": anything}, "verification"),
        {"name": "verify", "in": "query", "schema": {"type": "boolean"}},
        limit,
    )
    history["responses"] |= invalid_query
    audit["responses"] |= invalid_query
    rollout["responses"]["202"] = rollout["responses"].pop("200")
    return {
        "/admin/catalogue": {
            "get": get_file,
            "put": change("Replace models.toml", edited, if_match) | {"requestBody": {"required": True, **file}},
        },
        "/admin/aliases/{name}": {
            "get": _admin_operation("Show an alias", anything, alias),
            "put": change("Replace or add an alias", edited, alias, if_match)
            | {"requestBody": {"required": True, "content": {JSON: {"schema": anything}}}},
            "delete": change("Remove an alias", edited, alias, if_match),
        },
        "/admin/aliases/{name}/plan": {
            "post": change("Show what replacing an alias would change, load and evict", anything, alias)
            | {"requestBody": {"required": True, "content": {JSON: {"schema": anything}}}}
        },
        "/admin/aliases/{name}/rollout": {
            "get": _admin_operation("Show the last rollout of an alias", anything, alias),
            "post": _with_body(rollout, RolloutBody, required=True),
            "delete": change("End a running rollout", anything, alias),
        },
        "/admin/aliases/{name}/rollout/acknowledge": {
            "post": _admin_operation("Acknowledge a rollback, so that /health does not list it", anything, alias)
        },
        "/admin/rollback": {
            "post": _with_body(
                change("Restore an earlier version", edited, if_match | {"required": False}),
                RollbackBody,
                required=False,
            )
        },
        "/admin/rollback/plan": {
            "post": _with_body(
                change("Show what a rollback would change, load and evict", anything), RollbackBody, required=False
            )
        },
        "/admin/neurons": {
            "get": get_neurons,
            "put": change("Replace the file of the neurons", edited_neurons, if_match)
            | {"requestBody": {"required": True, **file}},
        },
        "/admin/neurons/rollback": {
            "post": _with_body(
                change("Restore an earlier version of the file of the neurons", edited_neurons),
                NeuronRollbackBody,
                required=False,
            )
        },
        "/admin/history": {"get": history},
        "/admin/audit": {"get": audit},
    }


def _with_body(operation: Json, kind: type[msgspec.Struct], *, required: bool) -> Json:
    """The operation with a JSON request body, and the 400 for an invalid one."""
    body = {"required": required, "content": {JSON: {"schema": reference(kind)}}}
    invalid = {"400": response("Invalid body.", ERRORS)}
    return operation | {"requestBody": body, "responses": operation["responses"] | invalid}


def _placement(summary: str, view: type) -> Json:
    """A load or an unload, which goes on after the answer."""
    operation = _with_body(_admin_operation(summary, reference(view)), PlacementBody, required=True)
    more = {
        "202": response("Started.", {JSON: {"schema": reference(view)}}),
        "503": response("Not possible now; retry later.", ERRORS),
    }
    return operation | {"responses": operation["responses"] | more}


def _admin_operation(summary: str, schema: Json, *parameters: Json) -> Json:
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": _admin_responses(schema),
        **_SECURITY,
    }


def _admin_responses(schema: Json) -> Json:
    return {
        "200": response("OK.", {JSON: {"schema": schema}}),
        "401": response("The key is missing or wrong.", ERRORS),
        "403": response("The key lacks the verb `read`, or `operate` for a change.", ERRORS),
        "404": response("No such object.", ERRORS),
    }
