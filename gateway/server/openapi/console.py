"""The paths of the console: those of `gateway/server/console/`."""

from __future__ import annotations

from gateway.server.capture.capture_routes import CaptureBody
from gateway.server.console.session_routes import SignInBody
from gateway.server.openapi.schemas import (
    ERRORS,
    JSON,
    STREAM,
    STRING,
    Json,
    list_schema,
    object_schema,
    reference,
    response,
)

__all__ = ["console_paths"]

HTML = "text/html"
_SESSION = object_schema(
    {
        "name": STRING,
        "verbs": list_schema(STRING),
        "may_infer": {"type": "boolean"},
        "csrf": STRING,
        "expires_in_s": {"type": "number"},
        "api_port": {"type": ["integer", "null"]},
        "api_is_tls": {"type": "boolean"},
    }
)
_KEYS: list[Json] = [{"key": []}, {"session": []}]
_CSRF = {"name": "x-cortex-csrf", "in": "header", "required": True, "schema": STRING}
_NO_SESSION = {"401": response("Not signed in.", ERRORS)}
_NO_CSRF = {"403": response("The value of `x-cortex-csrf` is missing or wrong.", ERRORS)}


def console_paths() -> Json:
    """The pages, the session, the events, the figures and the playground."""
    figures = object_schema({"interval_s": {"type": "number"}, "points": list_schema({"type": "object"})})
    return {
        "/": {"get": {"summary": "The console", "responses": {"200": response("The page.", {HTML: {}})}}},
        "/admin/session": {
            "get": {
                "summary": "Show the session of this browser",
                "responses": {"200": response("Signed in.", {JSON: {"schema": _SESSION}}), **_NO_SESSION},
            },
            "post": {
                "summary": "Sign in with a key: sets a cookie",
                "requestBody": {"required": True, "content": {JSON: {"schema": reference(SignInBody)}}},
                "responses": {
                    "201": response("Signed in.", {JSON: {"schema": _SESSION}}),
                    "400": response("Invalid body.", ERRORS),
                    "401": response("The key is not valid.", ERRORS),
                    "415": response("Not JSON.", ERRORS),
                },
            },
            "delete": {
                "summary": "Sign out; without a session there is nothing to do, and no header is needed",
                "parameters": [{**_CSRF, "required": False}],
                "responses": {"204": {"description": "Signed out."}, **_NO_CSRF},
            },
        },
        "/admin/events": {
            "get": {
                "summary": "Follow the fleet, the aliases, the problems, the requests and the log",
                "parameters": [{"name": "last-event-id", "in": "header", "schema": STRING}],
                "responses": {
                    "200": response("Server-sent events, without end.", {STREAM: {}}),
                    "401": response("No valid key or session.", ERRORS),
                    "503": response("Too many pages follow the events.", ERRORS),
                },
                "security": _KEYS,
            }
        },
        "/admin/figures": {
            "get": {
                "summary": "Show the figures of the last hour",
                "responses": {
                    "200": response("OK.", {JSON: {"schema": figures}}),
                    "401": response("No valid key or session.", ERRORS),
                    "404": response("The admin API is off.", ERRORS),
                },
                "security": _KEYS,
            }
        },
        "/admin/capture": _capture(),
        "/admin/playground/v1/chat/completions": {
            "post": {
                "summary": "Send a chat completion as the signed-in key",
                "parameters": [_CSRF],
                "requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}},
                "responses": {
                    "200": response("As on the public port.", {JSON: {}, STREAM: {}}),
                    **_NO_SESSION,
                    **_NO_CSRF,
                },
                "security": [{"session": []}],
            }
        },
    }


def _capture() -> Json:
    status: Json = {"type": ["object", "null"]}
    refusals = {
        "401": response("No valid key or session.", ERRORS),
        "403": response("The key lacks the verb `operate`.", ERRORS),
        "404": response("No such alias or capture, or the admin API is off.", ERRORS),
    }

    def operation(summary: str, code: str, schema: Json) -> Json:
        answers = {code: response("OK.", {JSON: {"schema": schema}}), **refusals}
        return {"summary": summary, "responses": answers, "security": _KEYS}

    started = operation("Start to capture the texts of an alias", "201", object_schema({"capture": status}))
    started["requestBody"] = {"required": True, "content": {JSON: {"schema": reference(CaptureBody)}}}
    started["responses"] |= {
        "400": response("Invalid body.", ERRORS),
        "409": response("Captures are not allowed: [capture] enabled.", ERRORS),
    }
    shown = object_schema({"capture": status, "requests": list_schema({"type": "object"})})
    return {
        "get": operation("Show the running capture and its texts", "200", shown),
        "post": started,
        "delete": operation("Stop the capture and erase its texts", "200", object_schema({"capture": status})),
    }
