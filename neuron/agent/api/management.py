"""The management API: a Quart-Trio application. Short lookups, and loads that may take half an hour."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
from quart import Response, request
from quart_trio import QuartTrio
from werkzeug.exceptions import HTTPException

from catalogue.toml.faults import FaultyFile
from neuron.agent.api.access_token import check_caller
from neuron.agent.api.metrics import NeuronMetrics
from neuron.agent.api.views import NeuronViews
from neuron.agent.errors import InvalidRequest, NeuronRequestError, Unauthorized, UnknownModel
from neuron.agent.supervision.host import ModelHost, ModelLoadRequest, ReloadOutcome
from neuron.agent.supervision.model_supervisor import ModelSupervisor

__all__ = ["InferenceUrl", "management_app"]

BODY_LIMIT_BYTES = 64 * 1024
BODY_TIMEOUT_S = 30
LOG_BYTES = 64 * 1024

T = TypeVar("T")
InferenceUrl = Callable[[ModelSupervisor], str]


class _UnloadBody(msgspec.Struct):
    model_id: str
    force: bool = False


class _SleepBody(msgspec.Struct):
    model_id: str
    level: int | None = None


class _WakeBody(msgspec.Struct):
    model_id: str


def management_app(
    host: ModelHost,
    views: NeuronViews,
    metrics: NeuronMetrics,
    *,
    inference_url: InferenceUrl,
    reload: Callable[[], Awaitable[ReloadOutcome]],
    version: str,
) -> QuartTrio:
    """The application.

    Args:
        host: The models.
        views: What is reported.
        metrics: For `/metrics`.
        inference_url: The base URL of a loaded model's inference API.
        reload: Reads the configuration and puts it in force; raises FaultyFile.
        version: For `/version`.
    """
    app = QuartTrio("neuron", root_path=str(Path(__file__).parent))
    # A load takes as long as it takes: its engine has `load_seconds`.
    app.config.update(RESPONSE_TIMEOUT=None, BODY_TIMEOUT=BODY_TIMEOUT_S, MAX_CONTENT_LENGTH=BODY_LIMIT_BYTES)
    _add_errors(app)
    _add_readings(app, host, views, metrics, version)
    _add_models(app, host, views, inference_url)
    _add_operations(app, host, reload)
    return app


def _add_errors(app: QuartTrio) -> None:
    @app.errorhandler(NeuronRequestError)
    async def answer_refusal(error: NeuronRequestError) -> Response:
        response = _json({"error": str(error), "code": error.code}, error.status)
        if isinstance(error, Unauthorized):
            response.headers["www-authenticate"] = "Bearer"
        return response

    @app.errorhandler(HTTPException)
    async def answer_http_exception(error: HTTPException) -> Response:
        status = error.code or 500
        text = f"no such path: {request.path}" if status == 404 else error.description or error.name
        response = _json({"error": text, "code": "not_found" if status == 404 else "invalid"}, status)
        if "Allow" in (headers := dict(error.get_headers())):
            response.headers["allow"] = headers["Allow"]
        return response

    @app.errorhandler(Exception)
    async def answer_crash(error: Exception) -> Response:
        app.logger.error("internal_error", exc_info=error)
        return _json({"error": "internal error in the neuron; its log has the traceback", "code": "internal"}, 500)


def _add_readings(app: QuartTrio, host: ModelHost, views: NeuronViews, metrics: NeuronMetrics, version: str) -> None:
    @app.before_request
    async def check() -> None:
        if request.path != "/health":
            headers = request.headers
            check_caller(host.settings.api.token, headers.get("authorization"), headers.get("origin"))

    @app.get("/health")
    async def health() -> Response:
        return _json(views.health())

    @app.get("/discovery")
    async def discovery() -> Response:
        return _json(views.discovery())

    @app.get("/version")
    async def show_version() -> Response:
        return _json({"version": version, "name": views.discovery()["hostname"]})

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.expose(), content_type="text/plain; version=0.0.4; charset=utf-8")


def _add_models(app: QuartTrio, host: ModelHost, views: NeuronViews, inference_url: InferenceUrl) -> None:
    @app.get("/models")
    async def models() -> Response:
        return _json(views.models())

    @app.get("/models/<path:model_id>/endpoint")
    async def endpoint(model_id: str) -> Response:
        return _json({"url": inference_url(_loaded(host, model_id))})

    @app.get("/models/<path:model_id>/capabilities")
    async def capabilities(model_id: str) -> Response:
        return _json(views.capabilities(_loaded(host, model_id)))

    @app.get("/v1/models")
    async def openai_models() -> Response:
        return _json(views.openai_models())

    @app.get("/engines/<path:model_id>/logs")
    async def logs(model_id: str) -> Response:
        supervisor = host.models.get(model_id)
        if supervisor is None:
            raise UnknownModel(f"unknown model '{model_id}'")
        limit_bytes = _count_of("bytes", LOG_BYTES)
        if request.args.get("follow", "0") in {"0", "false", ""}:
            return Response(supervisor.output.recent(limit_bytes), content_type="text/plain; charset=utf-8")
        following: AsyncIterator[bytes] = supervisor.output.follow(limit_bytes)
        response = Response(following, content_type="text/plain; charset=utf-8")
        response.timeout = None
        return response


def _add_operations(app: QuartTrio, host: ModelHost, reload: Callable[[], Awaitable[ReloadOutcome]]) -> None:
    @app.post("/models/load")
    async def load() -> Response:
        await host.load(await _body(ModelLoadRequest))
        return _json({"status": "loaded"})

    @app.post("/models/unload")
    async def unload() -> Response:
        body = await _body(_UnloadBody)
        await host.unload(body.model_id, force=body.force)
        return _json({"status": "unloaded"})

    @app.post("/models/sleep")
    async def sleep() -> Response:
        body = await _body(_SleepBody)
        if body.level not in {None, 1, 2}:
            raise InvalidRequest("level must be 1 or 2")
        await host.sleep(body.model_id, body.level)
        return _json({"status": "asleep"})

    @app.post("/models/wake")
    async def wake() -> Response:
        await host.wake((await _body(_WakeBody)).model_id)
        return _json({"status": "loaded"})

    @app.post("/reload")
    async def reload_configuration() -> Response:
        try:
            outcome = await reload()
        except FaultyFile as error:
            faults = [fault.as_json() for fault in error.faults]
            return _json({"error": str(error), "code": "invalid", "faults": faults}, 400)
        return _json({"status": "reloaded", **msgspec.to_builtins(outcome)})


def _loaded(host: ModelHost, model_id: str) -> ModelSupervisor:
    supervisor = host.models.get(model_id)
    if supervisor is None or not supervisor.is_routable:
        raise UnknownModel(f"model '{model_id}' not loaded")
    return supervisor


async def _body(kind: type[T]) -> T:
    try:
        return msgspec.json.decode(await request.get_data(), type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"invalid request: {error}") from None


def _count_of(name: str, default: int) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InvalidRequest(f"{name} must be a number of bytes")
    return int(text)


def _json(body: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(body), status, content_type="application/json")
