"""The OpenAPI documents say what there is: no path too many, none too few, no reference into nothing.

That answers are as described is shown by schemathesis (tests/clients/installed/test_schema.py).
"""

import json
import re

import pytest
from fakes.running import running_gateway

from gateway.proxy.endpoints import ENDPOINTS
from gateway.server import openapi
from gateway.server.openapi import ASKED
from gateway.server.path_hints import WINDOWS
from gateway.server.public_app import PublicRoutes, make_windows

PUBLIC, ADMIN = json.loads(openapi.public("1.2.3")), json.loads(openapi.admin("1.2.3"))
METHODS = {"get", "post", "delete"}


def described(document):
    return {(path, method) for path, item in document["paths"].items() for method in METHODS & item.keys()}


def routed(app):
    """The rules of a Quart application, an `any(…)` taken apart, as OpenAPI writes them."""
    found = set()
    for rule in app.url_map.iter_rules():
        if rule.endpoint == "static":
            continue
        choices = re.search(r"<any\((.*?)\):\w+>", rule.rule)
        for choice in choices[1].split(", ") if choices else [""]:
            path = re.sub(r"<any\(.*?\):\w+>", choice, rule.rule)
            path = re.sub(r"<(?:\w+:)?(\w+)>", r"{\1}", path)
            found |= {(path, method.lower()) for method in rule.methods & {"GET", "POST", "DELETE"}}
    return found


def test_public_document_has_the_paths_there_are():
    """Those of the endpoint table and those of the windows."""
    windows = PublicRoutes(models=list, model=lambda _: None, health=dict, ready=bool)
    there_are = {(path, "post") for path in ENDPOINTS} | routed(make_windows(windows, "1.2.3"))

    assert described(PUBLIC) == there_are
    assert set(ASKED) == set(ENDPOINTS)
    assert {path for path, method in there_are if method == "get" and "{" not in path} == set(WINDOWS)


async def test_admin_document_has_the_paths_there_are(tmp_path):
    """All of them behind the token, but for what is looked at by machines."""
    async with running_gateway(tmp_path, []) as cortex:
        assert described(ADMIN) == routed(cortex.gateway.admin_app)
    for path, item in ADMIN["paths"].items():
        for operation in item.values():
            assert ("security" in operation) == path.startswith("/admin/")


@pytest.mark.parametrize("document", [PUBLIC, ADMIN])
def test_document_is_whole(document):
    """Every reference has its component, every operation a summary, and no name is Python's."""
    text = json.dumps(document)
    wanted = set(re.findall(r'"\$ref": "#/components/schemas/([^"]+)"', text))

    assert document["openapi"] == "3.1.0"
    assert document["info"]["version"] == "1.2.3"
    assert wanted <= document["components"]["schemas"].keys()
    assert "gateway.dialects" not in text
    for item in document["paths"].values():
        assert all(operation["summary"] for operation in item.values())


def test_form_endpoints_take_forms():
    """And the others JSON, with `model` in either."""
    for path, endpoint in ENDPOINTS.items():
        [(kind, body)] = PUBLIC["paths"][path]["post"]["requestBody"]["content"].items()
        assert kind == ("multipart/form-data" if endpoint.is_form else "application/json")
        schema = body["schema"]["allOf"][0] if "allOf" in body["schema"] else body["schema"]
        assert "model" in schema["required"]
