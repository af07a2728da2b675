"""The OpenAPI document of the public port."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import msgspec

from gateway.dialects.anthropic.request_types import MessagesRequest
from gateway.dialects.responses.request_types import ResponsesRequest
from gateway.errors import Envelope
from gateway.proxy import total_deadline
from gateway.proxy.endpoints import ENDPOINTS, Endpoint
from gateway.server.models_api import Entry
from gateway.server.openapi.schemas import (
    ANTHROPIC_ERROR,
    ERRORS,
    FORM,
    JSON,
    PUBLIC_TYPES,
    STREAM,
    STRING,
    TEXT,
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

__all__ = ["ENDPOINT_DOCS", "public_document"]


def public_document(version: str) -> bytes:
    """The document of the public port."""
    paths = {path: {"post": _inference(path, endpoint)} for path, endpoint in ENDPOINTS.items()}
    components = {
        "schemas": component_schemas(PUBLIC_TYPES),
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A key: ctx_…"},
            "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            "api-key": {"type": "apiKey", "in": "header", "name": "api-key"},
        },
    }
    return document("cortex", version, {**paths, **_lookups()}, components)


# Inference endpoints .................................................................................................


class EndpointDoc(NamedTuple):
    """One inference endpoint: its summary, and its required fields besides `model`.

    `kinds` are the content types of its answers; a neuron may send others.
    """

    summary: str
    required: Mapping[str, Json] = MappingProxyType({})
    kinds: tuple[str, ...] = (JSON,)


_FILE: Json = {"type": "string", "contentMediaType": "application/octet-stream"}
_TEXTS: Json = {"anyOf": [STRING, {"type": "array", "items": {}}]}

ENDPOINT_DOCS: Mapping[str, EndpointDoc] = MappingProxyType(
    {
        "/v1/chat/completions": EndpointDoc(
            "Create a chat completion", {"messages": {"type": "array", "items": {"type": "object"}}}, (JSON, STREAM)
        ),
        "/v1/completions": EndpointDoc("Complete a prompt", {"prompt": _TEXTS}, (JSON, STREAM)),
        "/v1/embeddings": EndpointDoc("Create embeddings", {"input": _TEXTS}),
        "/v1/rerank": EndpointDoc(
            "Rank documents by relevance to a query", {"query": STRING, "documents": {"type": "array"}}
        ),
        "/v1/responses": EndpointDoc("Create a response (OpenAI Responses API)", kinds=(JSON, STREAM)),
        "/v1/images/generations": EndpointDoc("Generate images", {"prompt": STRING}, (JSON, STREAM)),
        "/v1/images/edits": EndpointDoc("Edit images", {"image": _FILE, "prompt": STRING}, (JSON, STREAM)),
        "/v1/audio/speech": EndpointDoc("Synthesize speech", {"input": STRING}, ("audio/*", STREAM)),
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
            "properties": {"id": STRING, "type": {"const": "message"}, "role": {"const": "assistant"}, "content": {}},
            "required": ["id", "type", "role", "content", "model", "stop_reason", "usage"],
        },
        "/v1/messages/count_tokens": {
            "type": "object",
            "properties": {"input_tokens": {"type": "integer", "minimum": 0}},
            "required": ["input_tokens"],
        },
        "/v1/responses": {
            "type": "object",
            "properties": {"id": STRING, "object": {"const": "response"}, "output": {"type": "array"}},
            "required": ["id", "object", "status", "output", "model"],
        },
    }
)

_ENGINE_ERROR: Json = {"type": "object", "description": "An engine's own error body, such as FastAPI's `detail`."}
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
        "content": {JSON: {"schema": {"anyOf": [reference(Envelope), ANTHROPIC_ERROR, _ENGINE_ERROR]}}},
    }
    for status, cause in (("4XX", "The request is at fault."), ("5XX", "The gateway or a neuron is at fault."))
}

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


_SECURITY: Json = {"security": [{}, {"bearer": []}, {"x-api-key": []}, {"api-key": []}]}
"""A key in one of three headers; none in open mode."""
_KEY_ERRORS: Json = {
    "401": response("In keys mode: the key is missing or wrong.", ERRORS),
    "403": response("The key may not do this.", ERRORS),
}


def _inference(path: str, endpoint: Endpoint) -> Json:
    doc = ENDPOINT_DOCS[path]
    schema = _request_schema(path, endpoint, doc)
    kind = FORM if endpoint.is_form else JSON
    answer = _ANSWERS.get(path, {"type": "object"})
    content = {each: {"schema": answer} if each == JSON else {} for each in doc.kinds}
    return {
        "summary": doc.summary,
        "parameters": [_REQUEST_ID, _DEADLINE],
        **_SECURITY,
        "requestBody": {"required": True, "content": {kind: {"schema": schema}}},
        "responses": {
            "200": response("The answer of the neuron, translated if the dialects differ.", content),
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
    return schema if request_type is None else {"allOf": [schema, reference(request_type)]}


# Lookups .............................................................................................................

_ANTHROPIC_MODEL = object_schema(
    {"type": {"const": "model"}, "id": STRING, "display_name": STRING, "created_at": STRING}
)


def _lookups() -> Json:
    either = [reference(Entry), _ANTHROPIC_MODEL]
    lists = [
        object_schema({"object": {"const": "list"}, "data": list_schema(reference(Entry))}),
        object_schema(
            {"data": list_schema(_ANTHROPIC_MODEL), "has_more": {"type": "boolean"}, "first_id": {}, "last_id": {}}
        ),
    ]
    invalid = {"400": response("Invalid limit.", ERRORS), **_KEY_ERRORS}
    unknown = {"404": response("Unknown model, or one that the key may not use.", ERRORS), **_KEY_ERRORS}
    ready = object_schema({"ready": {"type": "boolean"}})
    return {
        "/v1/models": lookup("List models and aliases", {"anyOf": lists}, parameters=_PAGES, errors=invalid),
        "/v1/models/{model_id}": lookup(
            "Get one model or alias; slashes in its id may be sent as %2F",
            {"anyOf": either},
            parameters=[path_parameter("model_id"), _ANTHROPIC_VERSION],
            errors=unknown,
        ),
        "/v1/usage": lookup(
            "Report what the key that asks has used, and how near it is to its limits",
            usage_schema(limits={"type": "object"}),
            parameters=USAGE_PARAMETERS,
            errors={"400": response("Invalid parameter.", ERRORS), **_KEY_ERRORS},
        ),
        "/health": lookup("Health of the gateway", health_schema()),
        "/ready": lookup(
            "Readiness: whether any neuron has answered since the start",
            ready,
            errors={"503": response("Not ready.", {JSON: {"schema": ready}})},
        ),
        "/": lookup("Name, version and health; a page for browsers", health_schema(name=STRING, version=STRING)),
        "/openapi.json": lookup("This document", {"type": "object"}),
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
