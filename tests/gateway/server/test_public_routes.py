"""The public lookups."""

import json

import pytest
from fakes.asgi_client import call
from structlog.testing import capture_logs

from gateway.server import public_routes
from gateway.server.public_routes import PublicRoutes
from gateway.telemetry.metrics import Metrics


@pytest.mark.parametrize(("ready", "status"), [(False, 503), (True, 200)])
async def test_ready_tells_load_balancers_whether_any_neuron_has_answered(ready, status):
    """503 until then."""
    routes = PublicRoutes(models=list, model=lambda _: None, health=dict, ready=lambda: ready, count_unknown_path=int)

    got, _, body = await call(public_routes.make_app(routes, "1"), "GET", "/ready")

    assert (got, json.loads(body)) == (status, {"ready": ready})


@pytest.mark.parametrize(
    ("method", "path", "api", "endpoint"),
    [
        ("POST", "/api/chat", "Ollama", "POST /v1/chat/completions"),
        ("POST", "/api/generate/", "Ollama", "POST /v1/completions"),
        ("GET", "/api/tags", "Ollama", "GET /v1/models"),
        ("POST", "/api/show", "Ollama", "GET /v1/models/{id}"),
        ("POST", "/api/embed", "Ollama", "POST /v1/embeddings"),
        ("POST", "/api/embeddings", "Ollama", "POST /v1/embeddings"),
        ("POST", "/api/pull", "Ollama", "POST /v1/chat/completions"),
        ("HEAD", "/api/version", "Ollama", None),
        ("GET", "/v1beta/models", "Gemini", "GET /v1/models"),
        ("POST", "/v1beta/models/gemini-2.5-pro:generateContent", "Gemini", "POST /v1/chat/completions"),
        ("POST", "/v1beta/models/a/b:streamGenerateContent", "Gemini", "POST /v1/chat/completions"),
        ("POST", "/v1beta/models/x:embedContent", "Gemini", "POST /v1/embeddings"),
        ("POST", "/v1alpha/cachedContents", "Gemini", "POST /v1/chat/completions"),
        ("POST", "/v1beta/openai/chat/completions", "", "/v1/chat/completions"),
        ("GET", "/nothing\x1b[31m", "", "/v1/models"),
    ],
)
async def test_404_names_the_missing_api_and_the_endpoint_to_use(method, path, api, endpoint):
    """It leaves a log line and counts as an error."""
    counted = []
    routes = PublicRoutes(
        models=list, model=lambda _: None, health=dict, ready=bool, count_unknown_path=lambda: counted.append(path)
    )
    with capture_logs() as logged:
        status, _, body = await call(public_routes.make_app(routes, "1"), method, path)
    assert status == 404
    if endpoint is not None:
        message = json.loads(body)["error"]["message"]
        assert api in message
        assert endpoint in message
    assert counted == [path]
    assert [(entry["event"], entry["path"]) for entry in logged] == [("unknown_path", path)]


async def test_log_line_of_an_unknown_path_is_bounded():
    """A scanner's paths are long."""
    routes = PublicRoutes(models=list, model=lambda _: None, health=dict, ready=bool, count_unknown_path=int)
    with capture_logs() as logged:
        await call(public_routes.make_app(routes, "1"), "GET", "/" + "x" * 5000)
    assert len(logged[0]["path"]) == public_routes.LOGGED_PATH_CHARACTERS


def test_unknown_paths_are_counted_as_errors_without_a_model():
    """In the metric that counts every error."""
    metrics = Metrics()
    metrics.count_unknown_path()
    assert b'cortex_request_errors_total{code="not_found",model="",node=""} 1.0' in metrics.expose()
