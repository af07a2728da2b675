"""What both OpenAPI documents are built from: types, small schemas, error responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, get_args

import msgspec

from gateway.aliases.warm_swap import SwapView
from gateway.dialects.anthropic.request_types import MessagesRequest
from gateway.dialects.responses.request_types import ResponsesRequest
from gateway.errors import Envelope
from gateway.fleet.loading.drain import DrainView
from gateway.fleet.loading.load_history import LoadView
from gateway.fleet.loading.manual import LoadResponse, UnloadResponse
from gateway.fleet.routing.queue import QueueView
from gateway.fleet.snapshot import NodeSnapshot
from gateway.server.admin_bodies import DrainBody, NeuronRollbackBody, PlacementBody, RollbackBody, RolloutBody
from gateway.server.capture.capture_routes import CaptureBody
from gateway.server.console.session_routes import SignInBody
from gateway.server.health.body import AliasState, CatalogueStatus
from gateway.server.health.problems import HealthProblem
from gateway.server.models_api import Entry

__all__ = [
    "ADMIN_TYPES",
    "ANTHROPIC_ERROR",
    "COUNT",
    "ERRORS",
    "FORM",
    "JSON",
    "PUBLIC_TYPES",
    "STREAM",
    "STRING",
    "TEXT",
    "TOML",
    "Json",
    "component_schemas",
    "document",
    "health_schema",
    "list_schema",
    "lookup",
    "object_schema",
    "path_parameter",
    "reference",
    "response",
]

Json: TypeAlias = dict[str, Any]

JSON, STREAM, FORM, TEXT = "application/json", "text/event-stream", "multipart/form-data", "text/plain"
TOML = "application/toml"

PUBLIC_TYPES = (MessagesRequest, ResponsesRequest, Entry, Envelope, CatalogueStatus, HealthProblem, SwapView)
ADMIN_TYPES = (
    *(Envelope, CatalogueStatus, HealthProblem, NodeSnapshot, LoadView, QueueView, SwapView),
    *(DrainBody, DrainView, PlacementBody, LoadResponse, UnloadResponse, NeuronRollbackBody, RollbackBody, RolloutBody),
    CaptureBody,
    SignInBody,
)


def _components(types: Sequence[Any]) -> tuple[Mapping[Any, Json], Json]:
    """The reference of each type, and the schemas that the references name."""
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return dict(zip(types, references, strict=True)), components


_REFERENCES, _ = _components(tuple(dict.fromkeys((*PUBLIC_TYPES, *ADMIN_TYPES))))


def component_schemas(types: Sequence[Any]) -> Json:
    """The schemas of these types, by name."""
    return _components(types)[1]


def reference(kind: object) -> Json:
    """The reference to the schema of one of the types."""
    return _REFERENCES[kind]


def object_schema(properties: Json, *optional: str) -> Json:
    """An object with these properties, all required but the `optional` ones."""
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def list_schema(of: object) -> Json:
    """An array of `of`."""
    return {"type": "array", "items": of}


def path_parameter(name: str) -> Json:
    """A parameter in the path."""
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


STRING: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}

ANTHROPIC_ERROR: Json = {
    "type": "object",
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "properties": {"type": STRING, "message": STRING}, "required": ["type", "message"]},
        "request_id": STRING,
    },
    "required": ["type", "error", "request_id"],
}
ERRORS: Json = {JSON: {"schema": {"anyOf": [reference(Envelope), ANTHROPIC_ERROR]}}}


def response(description: str, content: Json) -> Json:
    """A response with this content."""
    return {"description": description, "content": content}


def lookup(summary: str, schema: Json, *, parameters: list[Json] | None = None, errors: Json | None = None) -> Json:
    """A path with a GET operation."""
    answers = {"200": response("OK.", {JSON: {"schema": schema}}), **(errors or {})}
    return {"get": {"summary": summary, "parameters": parameters or [], "responses": answers}}


_ALIAS: Json = object_schema(
    {
        "name": STRING,
        "targets": list_schema(object_schema({"model": STRING, "weight": {"type": "number"}})),
        "state": {"enum": list(get_args(AliasState))},
        "rollout": {"type": ["object", "null"]},
    }
)


def health_schema(**more: Json) -> Json:
    """The body of `/health`, with more fields before its own. In keys mode most are for keys with `read` only."""
    fields: Json = {
        **more,
        "status": {"enum": ["ok", "impaired", "degraded"]},
        "problems": list_schema(reference(HealthProblem)),
        "nodes": object_schema({"healthy": COUNT, "total": COUNT, "drained": COUNT}),
        "catalogue": reference(CatalogueStatus),
        "aliases": list_schema(_ALIAS),
        "unservable": list_schema({"type": "object"}),
        "swaps": list_schema(reference(SwapView)),
    }
    return object_schema(fields, "problems", "catalogue", "aliases", "unservable", "swaps")


def document(title: str, version: str, paths: Json, components: Json) -> bytes:
    """The document as JSON."""
    licence = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    info = {"title": title, "version": version, "license": licence}
    return msgspec.json.encode({"openapi": "3.1.0", "info": info, "paths": paths, "components": components})
