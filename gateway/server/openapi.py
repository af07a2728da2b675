"""`/openapi.json` of either port: an OpenAPI 3.1 document out of the endpoint table and the types the code itself uses.

So it cannot say what the code does not: requests that are translated are described by the types they are read into,
answers of ours by those they are written from. What is passed through is described no further than we read it. A test
holds the paths to the routes that exist; adding a route is adding a row here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec

from gateway.aliases.warm_swap import SwapView
from gateway.dialects.anthropic import incoming as anthropic
from gateway.dialects.responses import incoming as responses
from gateway.errors import Envelope
from gateway.fleet.loading.drain import DrainView
from gateway.fleet.loading.load_history import LoadView
from gateway.fleet.loading.manual import Loading, Unloading
from gateway.fleet.routing.queue import LineView
from gateway.fleet.snapshot import NodeSnapshot
from gateway.proxy import total_deadline
from gateway.proxy.endpoints import ENDPOINTS, Endpoint
from gateway.server.admin_bodies import Drain, Placed
from gateway.server.models_api import CatalogueStatus, Entry

__all__ = ["ASKED", "admin", "public"]

Json = dict[str, Any]

JSON, STREAM, FORM, TEXT = "application/json", "text/event-stream", "multipart/form-data", "text/plain"


# What is asked of each inference endpoint ............................................................................


class Asked(NamedTuple):
    """One inference endpoint: what it is for, and the fields without which it makes no sense, besides `model`.

    `kinds` are the content types of its answers; a neuron may have others.
    """

    summary: str
    required: Mapping[str, Json] = MappingProxyType({})
    kinds: tuple[str, ...] = (JSON,)


_TEXT: Json = {"type": "string"}
_FILE: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_TEXTS: Json = {"anyOf": [_TEXT, {"type": "array", "items": {}}]}

ASKED: Mapping[str, Asked] = MappingProxyType(
    {
        "/v1/chat/completions": Asked(
            "Chat, streamed or not", {"messages": {"type": "array", "items": {"type": "object"}}}, (JSON, STREAM)
        ),
        "/v1/completions": Asked("Completions of a prompt, streamed or not", {"prompt": _TEXTS}, (JSON, STREAM)),
        "/v1/embeddings": Asked("Vectors of texts", {"input": _TEXTS}),
        "/v1/rerank": Asked("How well documents fit a query", {"query": _TEXT, "documents": {"type": "array"}}),
        "/v1/responses": Asked("OpenAI Responses, streamed or not", kinds=(JSON, STREAM)),
        "/v1/images/generations": Asked("Pictures", {"prompt": _TEXT}, (JSON, STREAM)),
        "/v1/images/edits": Asked("Pictures out of pictures", {"image": _FILE, "prompt": _TEXT}, (JSON, STREAM)),
        "/v1/audio/speech": Asked("Speech", {"input": _TEXT}, ("audio/*", STREAM)),
        "/v1/audio/transcriptions": Asked("What is said in a recording", {"file": _FILE}, (JSON, TEXT, STREAM)),
        "/v1/audio/translations": Asked("The same in English", {"file": _FILE}, (JSON, TEXT)),
        "/v1/moderations": Asked("Whether texts are harmful", {"input": _TEXTS}),
        "/v1/tokenize": Asked("The tokens of a text or a chat"),
        "/v1/detokenize": Asked("The text of tokens", {"tokens": {"type": "array", "items": {"type": "integer"}}}),
        "/tokenize": Asked("As /v1/tokenize"),
        "/detokenize": Asked("As /v1/detokenize", {"tokens": {"type": "array", "items": {"type": "integer"}}}),
        "/v1/messages": Asked("Anthropic Messages, streamed or not", kinds=(JSON, STREAM)),
        "/v1/messages/count_tokens": Asked("How many tokens a Messages request has"),
    }
)

_UNDERSTOOD: Mapping[str, type[msgspec.Struct]] = MappingProxyType(
    {
        "/v1/messages": anthropic.Request,
        "/v1/messages/count_tokens": anthropic.Request,
        "/v1/responses": responses.Request,
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
_OF_AN_ENGINE: Json = {"type": "object", "description": "JSON of an engine's own, such as FastAPI's `detail`."}


# Types ...............................................................................................................

_OF_CLIENTS = (anthropic.Request, responses.Request, Entry, Envelope, CatalogueStatus, SwapView)
_OF_OPERATORS = (
    *(Envelope, CatalogueStatus, NodeSnapshot, LoadView, LineView, SwapView),
    *(Drain, DrainView, Placed, Loading, Unloading),
)


def _components(types: Sequence[Any]) -> tuple[Mapping[Any, Json], Json]:
    """What stands for each of the types, and what those names mean."""
    references, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    return dict(zip(types, references, strict=True)), components


_REFERENCE_OF, _ = _components(tuple(dict.fromkeys((*_OF_CLIENTS, *_OF_OPERATORS))))
_LONG_AND_SHORT = (
    (b"gateway.dialects.anthropic.incoming.", b"Messages"),
    (b"gateway.dialects.responses.incoming.", b"Responses"),
)


def _encoded(document: Json) -> bytes:
    """With names that a reader of two of them can tell apart, and no Python in them."""
    data = msgspec.json.encode(document)
    for long, short in _LONG_AND_SHORT:
        data = data.replace(long, short)
    return data


# The public port .....................................................................................................

_REQUEST_ID: Json = {
    "name": "x-request-id",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Kept if it is 1 to 128 of A-Z a-z 0-9 . _ : -",
}
_DEADLINE: Json = {
    "name": total_deadline.HEADER.decode(),
    "in": "header",
    "schema": {"type": "integer", "minimum": 1, "maximum": total_deadline.LONGEST_MS},
    "description": "How long all of it may take.",
}
_ANTHROPIC_VERSION: Json = {
    "name": "anthropic-version",
    "in": "header",
    "schema": {"type": "string"},
    "description": "Whoever sends it is answered in Anthropic's shape.",
}


def public(version: str) -> bytes:
    """Of the port clients ask."""
    paths = {path: {"post": _inference(path, endpoint)} for path, endpoint in ENDPOINTS.items()}
    return _document("cortex", version, {**paths, **_windows()}, {"schemas": _components(_OF_CLIENTS)[1]})


def _inference(path: str, endpoint: Endpoint) -> Json:
    asked = ASKED[path]
    schema = _request_schema(path, endpoint, asked)
    kind = FORM if endpoint.is_form else JSON
    answer = _ANSWERS.get(path, {"type": "object"})
    content = {each: {"schema": answer} if each == JSON else {} for each in asked.kinds}
    return {
        "summary": asked.summary,
        "parameters": [_REQUEST_ID, _DEADLINE],
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "responses": {"200": _answer("The answer, as a neuron gave it or translated.", content), **_REFUSALS},
    }


def _request_schema(path: str, endpoint: Endpoint, asked: Asked) -> Json:
    """What is read: `model`, and all of a request that is understood; the rest goes to the neuron as it came."""
    properties: Json = {"model": {"type": "string", "description": "An id or an alias."}, **asked.required}
    if STREAM in asked.kinds and not endpoint.is_form:
        properties["stream"] = {"type": ["boolean", "null"]}
    known = {"type": "object", "properties": properties, "required": ["model", *asked.required]}
    understood = _UNDERSTOOD.get(path)
    return known if understood is None else {"allOf": [known, _REFERENCE_OF[understood]]}


def _answer(description: str, content: Json) -> Json:
    return {"description": description, "content": content}


_ERRORS: Json = {JSON: {"schema": {"anyOf": [_REFERENCE_OF[Envelope], _ANTHROPIC_ERROR]}}}
_PATIENCE: Json = {"retry-after": {"schema": {"type": "integer"}, "description": "Whole seconds, where waiting helps."}}
_REFUSALS: Json = {
    status: {
        "description": f"{whose} The status may be a neuron's own; in the form of the endpoint's dialect.",
        "headers": _PATIENCE,
        "content": {JSON: {"schema": {"anyOf": [_REFERENCE_OF[Envelope], _ANTHROPIC_ERROR, _OF_AN_ENGINE]}}},
    }
    for status, whose in (("4XX", "It is the request."), ("5XX", "It is not the request."))
}


def _window(summary: str, schema: Json, *, parameters: list[Json] | None = None, errors: Json | None = None) -> Json:
    answers = {"200": _answer("It.", {JSON: {"schema": schema}}), **(errors or {})}
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


def _windows() -> Json:
    either = [_REFERENCE_OF[Entry], _ANTHROPIC_MODEL]
    lists = [
        _object({"object": {"const": "list"}, "data": _list(_REFERENCE_OF[Entry])}),
        _object({"data": _list(_ANTHROPIC_MODEL), "has_more": {"type": "boolean"}, "first_id": {}, "last_id": {}}),
    ]
    refused = {"400": _answer("No such limit.", _ERRORS)}
    unknown = {"404": _answer("No such model.", _ERRORS)}
    ready = _object({"ready": {"type": "boolean"}})
    return {
        "/v1/models": _window("What can be asked for", {"anyOf": lists}, parameters=_PAGES, errors=refused),
        "/v1/models/{model_id}": _window(
            "One of them; slashes as they are or as %2F",
            {"anyOf": either},
            parameters=[_in_path("model_id"), _ANTHROPIC_VERSION],
            errors=unknown,
        ),
        "/health": _window("How it is", _object(_HEALTH, *_HEALTH_OPTIONAL)),
        "/ready": _window(
            "Whether a neuron has answered yet", ready, errors={"503": _answer("Not yet.", {JSON: {"schema": ready}})}
        ),
        "/": _window("Who it is", _object({"name": _TEXT, "version": _TEXT, **_HEALTH}, *_HEALTH_OPTIONAL)),
        "/openapi.json": _window("This document", {"type": "object"}),
    }


_PAGES: list[Json] = [
    _ANTHROPIC_VERSION,
    *(
        {"name": name, "in": "query", "schema": {}, "description": f"{what}; with anthropic-version only."}
        for name, what in (
            ("limit", "1 to 1000"),
            ("after_id", "The page after it"),
            ("before_id", "The page before it"),
        )
    ),
]


def _in_path(name: str) -> Json:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


# The metrics and admin port ..........................................................................................


def admin(version: str) -> bytes:
    """Of the port operators ask. What is for them only is behind the token."""
    components = {
        "schemas": _components(_OF_OPERATORS)[1],
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
            "queue": _list(_REFERENCE_OF[LineView]),
            "swaps": _list(_REFERENCE_OF[SwapView]),
            "upstream": {"type": "object", "additionalProperties": _COUNT},
            "now": {"type": "number"},
        }
    )
    reloaded = _object({"result": _TEXT, "generation": _COUNT, "diff": {"type": "object"}, "faults": _list({})})
    drained = _REFERENCE_OF[DrainView]
    request_id, alias = _in_path("request_id"), _in_path("alias")
    return {
        "/metrics": {"get": {"summary": "For Prometheus", "responses": {"200": _answer("Text.", {TEXT: {}})}}},
        "/health": _window("How it is", _object(_HEALTH, *_HEALTH_OPTIONAL)),
        "/openapi.json": _window("This document", {"type": "object"}),
        "/admin/reload": {
            "post": _guarded("Read models.toml again", reloaded)
            | {"responses": _guarded_answers(reloaded) | {"422": _answer("Faulty.", {JSON: {"schema": reloaded}})}}
        },
        "/admin/plan": {
            "post": {
                **_guarded("What a models.toml would take", _object({"verdict": _TEXT})),
                "parameters": [{"name": "path", "in": "query", "schema": _TEXT}],
                "requestBody": {"content": {TEXT: {"schema": _TEXT}}},
            }
        },
        "/admin/rollouts": {"get": _guarded("Rollouts under way", _object({"rollouts": _list({"type": "object"})}))},
        "/admin/swaps/{alias}/retry": {"post": _guarded("Warm an alias again", {"type": "object"}, alias)},
        "/admin/shadows/{alias}": {"get": _guarded("An alias beside its shadow", {"type": "object"}, alias)},
        "/admin/requests": {"get": _guarded("Requests under way", _REQUESTS)},
        "/admin/requests/{request_id}": {
            "get": _guarded("What became of a request", _REQUESTS, request_id),
            "delete": _guarded("End one", _object({"cancelled": _COUNT}), request_id),
        },
        "/admin/fleet": {"get": _guarded("Neurons, loads, lines and connections", fleet)},
        "/admin/load": {"post": _ordered("Load a model", Loading)},
        "/admin/unload": {"post": _ordered("Unload a model", Unloading)},
        "/admin/nodes/{name}": {"get": _guarded("How the drain of a neuron goes", drained, _in_path("name"))},
        "/admin/nodes/{name}/drain": {
            "post": _with_body(_guarded("Give a neuron nothing new", drained, _in_path("name")), Drain, required=False)
        },
        "/admin/nodes/{name}/undrain": {"post": _guarded("Let requests on to it again", drained, _in_path("name"))},
    }


def _with_body(operation: Json, kind: type[msgspec.Struct], *, required: bool) -> Json:
    """An operation that takes JSON, and says so of what is none."""
    body = {"required": required, "content": {JSON: {"schema": _REFERENCE_OF[kind]}}}
    refused = {"400": _answer("Not such a body.", _ERRORS)}
    return operation | {"requestBody": body, "responses": operation["responses"] | refused}


def _ordered(summary: str, view: type) -> Json:
    """An order for a model, which is carried out after it was answered."""
    operation = _with_body(_guarded(summary, _REFERENCE_OF[view]), Placed, required=True)
    more = {
        "202": _answer("Under way.", {JSON: {"schema": _REFERENCE_OF[view]}}),
        "503": _answer("Not now.", _ERRORS),
    }
    return operation | {"responses": operation["responses"] | more}


def _guarded(summary: str, schema: Json, *parameters: Json) -> Json:
    return {
        "summary": summary,
        "parameters": list(parameters),
        "responses": _guarded_answers(schema),
        "security": [{"token": []}],
    }


def _guarded_answers(schema: Json) -> Json:
    return {
        "200": _answer("Done.", {JSON: {"schema": schema}}),
        "401": _answer("Not the token.", _ERRORS),
        "404": _answer("There is none, or no token is set.", _ERRORS),
    }


def _document(title: str, version: str, paths: Json, components: Json) -> bytes:
    licence = {"name": "Apache-2.0", "identifier": "Apache-2.0"}
    info = {"title": title, "version": version, "license": licence}
    return _encoded({"openapi": "3.1.0", "info": info, "paths": paths, "components": components})
