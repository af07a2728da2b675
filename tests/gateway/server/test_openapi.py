"""The OpenAPI documents describe exactly the routes that exist, and every reference in them resolves.

Whether the answers match the schemas is for schemathesis to check (tests/clients/installed/test_schema.py).
"""

import json
import re

import pytest
from fakes.running import running_gateway

from gateway.proxy.endpoints import ENDPOINTS
from gateway.server import public_routes
from gateway.server.openapi.admin import admin_document
from gateway.server.openapi.public import ENDPOINT_DOCS, public_document
from gateway.server.path_hints import LOOKUPS
from gateway.server.public_routes import PublicRoutes

PUBLIC, ADMIN = json.loads(public_document("1.2.3")), json.loads(admin_document("1.2.3"))
STREAMED = {("/", "get"), ("/admin/events", "get"), ("/admin/playground/v1/chat/completions", "post")}
"""What the admin port answers before Quart does."""
METHODS = {"get", "post", "put", "patch", "delete"}


def described(document):
    return {(path, method) for path, item in document["paths"].items() for method in METHODS & item.keys()}


def routed(app):
    """The paths and methods of a Quart application, written as in OpenAPI; an `any(…)` becomes one path per choice."""
    found = set()
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static":
            continue
        choices = re.search(r"<any\((.*?)\):\w+>", rule.rule)
        for choice in choices[1].split(", ") if choices else [""]:
            path = re.sub(r"<any\(.*?\):\w+>", choice, rule.rule)
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)
            found |= {(path, method.lower()) for method in rule.methods & {"GET", "POST", "PUT", "PATCH", "DELETE"}}
    return found


def test_public_document_describes_the_routes_that_exist():
    """The inference endpoints and the lookups."""
    routes = PublicRoutes(models=list, model=lambda _: None, health=dict, ready=bool, count_unknown_path=int)
    existing = {(path, "post") for path in ENDPOINTS} | routed(public_routes.make_app(routes, "1.2.3"))

    assert described(PUBLIC) == existing
    assert set(ENDPOINT_DOCS) == set(ENDPOINTS)
    assert {path for path, method in existing if method == "get" and "{" not in path} == set(LOOKUPS)


async def test_admin_document_describes_the_routes_that_exist(tmp_path):
    """Those under /admin/ require the token, the others do not."""
    async with running_gateway(tmp_path, []) as cortex:
        assert described(ADMIN) == routed(cortex.gateway.admin_routes) | STREAMED
    for path, item in ADMIN["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == (path.startswith("/admin/") and path != "/admin/session")


@pytest.mark.parametrize("document", [PUBLIC, ADMIN])
def test_document_is_complete(document):
    """Every reference has its component, every operation a summary, and no name is a Python module path."""
    text = json.dumps(document)
    references = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text))

    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    assert references <= document["components"]["schemas"].keys()
    assert "gateway.dialects" not in text
    for item in document["paths"].values():
        assert all(operation["summary"] for operation in item.values())


def test_form_endpoints_take_forms():
    """Other endpoints take JSON; `model` is required in both."""
    for path, endpoint in ENDPOINTS.items():
        [(kind, body)] = PUBLIC["paths"][path]["post"]["requestBody"]["content"].items()
        assert kind == ("multipart/form-data" if endpoint.is_form else "application/json")
        schema = body["schema"]["allOf"][0] if "allOf" in body["schema"] else body["schema"]
        assert "model" in schema["required"]


def test_schemas_of_a_dialect_have_its_name():
    """So that a reader can tell the tools of Messages from those of Responses."""
    names = PUBLIC["components"]["schemas"].keys()
    for name in ("Request", "Tool", "ToolChoice"):
        assert {f"Messages{name}", f"Responses{name}"} <= names
        assert name not in names
