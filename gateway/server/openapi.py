"""`/openapi.json` of either port: an OpenAPI 3.1 document built from the endpoint table and the types of the code.

A translated request is described by the type it is decoded into, an answer of the gateway by the type it is encoded
from. What is passed through is described only as far as the gateway reads it. A test compares the paths with the routes
that exist: a new route needs a row here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

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
from gateway.proxy import total_deadline
from gateway.proxy.endpoints import ENDPOINTS, Endpoint
from gateway.server.admin_bodies import DrainBody, PlacementBody
from gateway.server.health import CatalogueStatus
from gateway.server.models_api import Entry

__all__ = ["ENDPOINT_DOCS", "admin", "public"]

Json = dict[str, Any]

JSON, STREAM, FORM, TEXT = "application/json", "text/event-stream", "multipart/form-data", "text/plain"


# Inference endpoints .................................................................................................


class EndpointDoc(NamedTuple):
    """One inference endpoint: its summary, and its required fields besides `model`.

    `kinds` are the content types of its answers; a neuron may send others.
    """

    summary: str
    required: Mapping[str, Json] = MappingProxyType({})
    kinds: tuple[str, ...] = (JSON,)


_TEXT: Json = {"type": "string"}
_FILE: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_TEXTS: Json = {"anyOf": [_TEXT, {"type": "array", "items": {}}]}

ENDPOINT_DOCS: Mapping[str, EndpointDoc] = MappingProxyType(
    {
        "/v1/chat/completions": EndpointDoc(
            "Create a chat completion", {"messages": {"type": "array", "items": {"type": "object"}}}, (JSON, STREAM)
        ),
        "/v1/completions": EndpointDoc("Complete a prompt", {"prompt": _TEXTS}, (JSON, STREAM)),
        "/v1/embeddings": EndpointDoc("Create embeddings", {"input": _TEXTS}),
        "/v1/rerank": EndpointDoc(
            "Rank documents by relevance to a query", {"query": _TEXT, "documents": {"type": "array"}}
        ),
        "/v1/responses": EndpointDoc("Create a response (OpenAI Responses API)", kinds=(JSON, STREAM)),
        "/v1/images/generations": EndpointDoc("Generate images", {"prompt": _TEXT}, (JSON, STREAM)),
        "/v1/images/edits": EndpointDoc("Edit images", {"image": _FILE, "prompt": _TEXT}, (JSON, STREAM)),
        "/v1/audio/speech": EndpointDoc("Synthesize speech", {"input": _TEXT}, ("audio/*", STREAM)),
        "/v1/audio/transcriptions": EndpointDoc("Transcribe audio", {"file": _FILE}, (JSON, TEXT, STREAM)),
        "/v1/audio/translations": EndpointDoc("Translate audio into English", {"file": _FILE}, (JSON, TEXT)),
        "/v1/moderations": EndpointDoc("Classify texts as harmful or not", {"input": _TEXTS}),
        "/v1/tokenize": EndpointDoc("Tokenize a text or a chat"),
        "/v1/detokenize": EndpointDoc(
            "Convert tokens to text", {"tokens": {"type": "array", "items": {"type": "integer"}}}
        ),
        "/tokenize": EndpointDoc("Same as /v1/tokenize"),
        "/detokenize": EndpointDoc(
            "Same as /v1/detokenize", {"tokens": {"type": "array", "items": {"type": "integer"}}}
        ),
        "/v1/messages": EndpointDoc("Create a message (Anthropic Messages API)", kinds=(JSON, STREAM)),
        "/v1/messages/count_tokens": EndpointDoc("Count the tokens of a Messages request"),
    }
)

_REQUEST_TYPES: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
    {
        "/v1/messages": MessagesRequest,
        "/v1/messages/count_tokens": MessagesRequest,
        "/v1/responses": ResponsesRequest,
    }
)
_ANSWERS: Mapping[str, Json] = MappingProxyType(
    {
        "/v1/messages": {
            "type": "object",
            "properties": {"id": _TEXT, "type": {"const": "message"}, "role": {"const": "assistant"}, "content": {}},
            "required": ["id", "type", "role", "content", "model", "stop_reason", "usage"],
        },
        "/v1/messages/count_tokens": {
            "type": "object",
            "properties": {"input_tokens": {"type": "integer", "minimum": 0}},
            "required": ["input_tokens"],
        },
        "/v1/responses": {
            "type": "object",
            "properties": {"id": _TEXT, "object": {"const": "response"}, "output": {"type": "array"}},
            "required": ["id", "object", "status", "output", "model"],
        },
    }
)
_ANTHROPIC_ERROR: Json = {
    "type": "object",
    "properties": {
        "type": {"const": "error"},
        "error": {"type": "object", "properties": {"type": _TEXT, "message": _TEXT}, "required": ["type", "message"]},
        "request_id": _TEXT,
    },
    "required": ["type", "error", "request_id"],
}
_ENGINE_ERROR: Json = {"type": "object", "description": "An engine's own error body, such as FastAPI's `detail`."}


# Types ...............................................................................................................

_PUBLIC_TYPES = (MessagesRequest, ResponsesRequest, Entry, Envelope, CatalogueStatus, SwapView)
_ADMIN_TYPES = (
    *(Envelope, CatalogueStatus, NodeSnapshot, LoadView, QueueView, SwapView),
    *(DrainBody, DrainView, PlacementBody, LoadResponse, UnloadResponse),
)


def _components(types: Sequence[Any]) -> tuple[Mapping[Any, Json], Json]:
    """The reference of each type, and the schemas that the references name."""
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return dict(zip(types, references, strict=True)), components


_REFERENCE_OF, _ = _components(tuple(dict.fromkeys((*_PUBLIC_TYPES, *_ADMIN_TYPES))))


# The public port .....................................................................................................

_REQUEST_ID: Json = {
    "name": "x-request-id",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Used as the request's id if it has 1 to 128 characters of A-Z a-z 0-9 . _ : -",
}
_DEADLINE: Json = {
    "name": total_deadline.HEADER.decode(),
    "in": "header",
    "schema": {"type": "integer", "minimum": 1, "maximum": total_deadline.LONGEST_MS},
    "description": "Time limit for the whole request, in milliseconds.",
}
_ANTHROPIC_VERSION: Json = {
    "name": "anthropic-version",
    "in": "header",
    "schema": {"type": "string"},
    "description": "If present, the answer has the format of the Anthropic API.",
}


def public(version: str) -> bytes:
    """The document of the public port."""
    paths = {path: {"post": _inference(path, endpoint)} for path, endpoint in ENDPOINTS.items()}
    return _document("cortex", version, {**paths, **_lookups()}, {"schemas": _components(_PUBLIC_TYPES)[1]})


def _inference(path: str, endpoint: Endpoint) -> Json:
    doc = ENDPOINT_DOCS[path]
    schema = _request_schema(path, endpoint, doc)
    kind = FORM if endpoint.is_form else JSON
    answer = _ANSWERS.get(path, {"type": "object"})
    content = {each: {"schema": answer} if each == JSON else {} for each in doc.kinds}
    return {
        "summary": doc.summary,
        "parameters": [_REQUEST_ID, _DEADLINE],
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "responses": {
            "200": _answer("The answer of the neuron, translated if the dialects differ.", content),
            **_ERROR_RESPONSES,
        },
    }


def _request_schema(path: str, endpoint: Endpoint, doc: EndpointDoc) -> Json:
    """The fields that the gateway reads; it passes all others on to the neuron."""
    properties: Json = {"model": {"type": "string", "description": "A model id or an alias."}, **doc.required}
    if STREAM in doc.kinds and not endpoint.is_form:
        properties["stream"] = {"type": ["boolean", "null"]}
    schema = {"type": "object", "properties": properties, "required": ["model", *doc.required]}
    request_type = _REQUEST_TYPES.get(path)
    return schema if request_type is None else {"allOf": [schema, _REFERENCE_OF[request_type]]}


def _answer(description: str, content: Json) -> Json:
    return {"description": description, "content": content}


_ERRORS: Json = {JSON: {"schema": {"anyOf": [_REFERENCE_OF[Envelope], _ANTHROPIC_ERROR]}}}
_RETRY_AFTER: Json = {
    "retry-after": {
        "schema": {"type": "integer"},
        "description": "When to retry, in whole seconds; absent if a retry does not help.",
    }
}
_ERROR_RESPONSES: Json = {
    status: {
        "description": f"{cause} The status may be the neuron's; the body has the format of the endpoint's dialect.",
        "headers": _RETRY_AFTER,
        "content": {JSON: {"schema": {"anyOf": [_REFERENCE_OF[Envelope], _ANTHROPIC_ERROR, _ENGINE_ERROR]}}},
    }
    for status, cause in (("4XX", "The request is at fault."), ("5XX", "The gateway or a neuron is at fault."))
}


def _lookup(summary: str, schema: Json, *, parameters: list[Json] | None = None, errors: Json | None = None) -> Json:
    answers = {"200": _answer("OK.", {JSON: {"schema": schema}}), **(errors or {})}
    return {"get": {"summary": summary, "parameters": parameters or [], "responses": answers}}


def _object(properties: Json, *optional: str) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required}


def _list(of: object) -> Json:
    return {"type": "array", "items": of}


_COUNT: Json = {"type": "integer", "minimum": 0}
_HEALTH: Json = {
    "status": {"enum": ["ok", "impaired", "degraded"]},
    "nodes": _object({"healthy": _COUNT, "total": _COUNT}),
    "catalogue": _REFERENCE_OF[CatalogueStatus],
    "unservable": _list({"type": "object"}),
    "swaps": _list(_REFERENCE_OF[SwapView]),
}
_HEALTH_OPTIONAL = ("unservable", "swaps")
_ANTHROPIC_MODEL = _object({"type": {"const": "model"}, "id": _TEXT, "display_name": _TEXT, "created_at": _TEXT})


def _lookups() -> Json:
    either = [_REFERENCE_OF[Entry], _ANTHROPIC_MODEL]
    lists = [
        _object({"object": {"const": "list"}, "data": _list(_REFERENCE_OF[Entry])}),
        _object({"data": _list(_ANTHROPIC_MODEL), "has_more": {"type": "boolean"}, "first_id": {}, "last_id": {}}),
    ]
    invalid = {"400": _answer("Invalid limit.", _ERRORS)}
    unknown = {"404": _answer("Unknown model.", _ERRORS)}
    ready = _object({"ready": {"type": "boolean"}})
    return {
        "/v1/models": _lookup("List models and aliases", {"anyOf": lists}, parameters=_PAGES, errors=invalid),
        "/v1/models/{model_id}": _lookup(
            "Get one model or alias; slashes in its id may be sent as %2F",
            {"anyOf": either},
            parameters=[_in_path("model_id"), _ANTHROPIC_VERSION],
            errors=unknown,
        ),
        "/health": _lookup("Health of the gateway", _object(_HEALTH, *_HEALTH_OPTIONAL)),
        "/ready": _lookup(
            "Readiness: whether any neuron has answered since the start",
            ready,
            errors={"503": _answer("Not ready.", {JSON: {"schema": ready}})},
        ),
        "/": _lookup(
            "Name, version and health", _object({"name": _TEXT, "version": _TEXT, **_HEALTH}, *_HEALTH_OPTIONAL)
        ),
        "/openapi.json": _lookup("This document", {"type": "object"}),
    }


_PAGES: list[Json] = [
    _ANTHROPIC_VERSION,
    *(
        {
            "name": name,
            "in": "query",
            "schema": {},
            "description": f"{what}; used only with the anthropic-version header.",
        }
        for name, what in (
            ("limit", "Entries per page, 1 to 1000"),
            ("after_id", "The page after this id"),
            ("before_id", "The page before this id"),
        )
    ),
]


def _in_path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


# The metrics and admin port ..........................................................................................


def admin(version: str) -> bytes:
    """The document of the metrics and admin port."""
    components = {
        "schemas": _components(_ADMIN_TYPES)[1],
        "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
    }
    return _document("cortex: metrics and administration", version, _administration(), components)


_REQUESTS = _object({"requests": _list({"type": "object"})})


def _administration() -> Json:
    fleet = _object(
        {
            "health": _object(_HEALTH, *_HEALTH_OPTIONAL),
            "nodes": _list(_REFERENCE_OF[NodeSnapshot]),
            "loads": _list(_REFERENCE_OF[LoadView]),
            "queue": _list(_REFERENCE_OF[QueueView]),
            "swaps": _list(_REFERENCE_OF[SwapView]),
            "upstream": {"type": "object", "additionalProperties": _COUNT},
            "now": {"type": "number"},
        }
    )
    reload = _object({"result": _TEXT, "generation": _COUNT, "diff": {"type": "object"}, "faults": _list({})})
    drain = _REFERENCE_OF[DrainView]
    request_id, alias = _in_path("request_id"), _in_path("alias")
    return {
        "/metrics": {
            "get": {
                "summary": "Metrics in the Prometheus text format",
                "responses": {"200": _answer("OK.", {TEXT: {}})},
            }
        },
        "/health": _lookup("Health of the gateway", _object(_HEALTH, *_HEALTH_OPTIONAL)),
        "/openapi.json": _lookup("This document", {"type": "object"}),
        "/admin/reload": {
            "post": _admin_operation("Reload models.toml", reload)
            | {
                "responses": _admin_responses(reload)
                | {"422": _answer("The file is faulty and not in force.", {JSON: {"schema": reload}})}
            }
        },
        "/admin/plan": {
            "post": {
                **_admin_operation("Show what a models.toml would change, load and evict", _object({"verdict": _TEXT})),
                "parameters": [{"name": "path", "in": "query", "schema": _TEXT}],
                "requestBody": {"content": {TEXT: {"schema": _TEXT}}},
            }
        },
        "/admin/rollouts": {
            "get": _admin_operation("List running rollouts", _object({"rollouts": _list({"type": "object"})}))
        },
        "/admin/swaps/{alias}/retry": {
            "post": _admin_operation("Retry the failed swap of an alias", {"type": "object"}, alias)
        },
        "/admin/shadows/{alias}": {
            "get": _admin_operation("Compare an alias with its shadow", {"type": "object"}, alias)
        },
        "/admin/requests": {"get": _admin_operation("List running requests", _REQUESTS)},
        "/admin/requests/{request_id}": {
            "get": _admin_operation("Explain a request: routing, waiting, attempts, outcome", _REQUESTS, request_id),
            "delete": _admin_operation("Cancel a request", _object({"cancelled": _COUNT}), request_id),
        },
        "/admin/fleet": {"get": _admin_operation("Show neurons, loads, queues and connections", fleet)},
        "/admin/load": {"post": _placement("Load a model", LoadResponse)},
        "/admin/unload": {"post": _placement("Unload a model", UnloadResponse)},
        "/admin/nodes/{name}": {"get": _admin_operation("Show the drain state of a neuron", drain, _in_path("name"))},
        "/admin/nodes/{name}/drain": {
            "post": _with_body(
                _admin_operation("Drain a neuron: send it no new requests", drain, _in_path("name")),
                DrainBody,
                required=False,
            )
        },
        "/admin/nodes/{name}/undrain": {"post": _admin_operation("End the drain of a neuron", drain, _in_path("name"))},
    }


def _with_body(operation: Json, kind: type[msgspec.Struct], *, required: bool) -> Json:
    """The operation with a JSON request body, and the 400 for an invalid one."""
    body = {"required": required, "content": {JSON: {"schema": _REFERENCE_OF[kind]}}}
    invalid = {"400": _answer("Invalid body.", _ERRORS)}
    return operation | {"requestBody": body, "responses": operation["responses"] | invalid}


def _placement(summary: str, view: type) -> Json:
    """A load or an unload, which goes on after the answer."""
    operation = _with_body(_admin_operation(summary, _REFERENCE_OF[view]), PlacementBody, required=True)
    more = {
        "202": _answer("Started.", {JSON: {"schema": _REFERENCE_OF[view]}}),
        "503": _answer("Not possible now; retry later.", _ERRORS),
    }
    return operation | {"responses": operation["responses"] | more}


def _admin_operation(summary: str, schema: Json, *parameters: Json) -> Json:
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": _admin_responses(schema),
        "security": [{"token": []}],
    }


def _admin_responses(schema: Json) -> Json:
    return {
        "200": _answer("OK.", {JSON: {"schema": schema}}),
        "401": _answer("The admin token is missing or wrong.", _ERRORS),
        "404": _answer("No such object, or the admin API is off because no token is set.", _ERRORS),
    }


def _document(title: str, version: str, paths: Json, components: Json) -> bytes:
    licence = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    info = {"title": title, "version": version, "license": licence}
    return msgspec.json.encode({"openapi": "3.1.0", "info": info, "paths": paths, "components": components})
