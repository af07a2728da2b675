"""`EngineClient`: the control API for engines without a neuron. How requests are addressed: `fleet/engine_access.py`.

A neuron reports its models, readings and counters. An OpenAI-compatible engine lists its model names, and that list
(`GET /v1/models`) is the health check too. Devices are unknown, so cortex places no model there. A model that the
engine loads on demand counts as loaded, because the engine will answer.

What each engine supports, with sources: docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Annotated, Any, Self

import httpx
import msgspec
import trio

from gateway.config.settings import NeuronSettings
from gateway.fleet.control.model_list import ModelListReader
from gateway.fleet.control.neuron_client import ControlHttp
from gateway.fleet.control.types import (
    LARGEST,
    DeviceReading,
    DiscoveredDevice,
    Discovery,
    Health,
    NeuronError,
    NeuronMalformed,
    NeuronModel,
    NeuronRefused,
    TokenLimit,
)
from gateway.fleet.engine_access import bearer

__all__ = ["POLLED_BY", "EngineClient"]

POLLED_BY = "x-cortex-polled-by"
"""A header with the id of the gateway that asks. A gateway that gets its own id refuses: it would serve itself."""

CANNOT = 501  # `NeuronRefused.status` for a call that the engine does not support; nothing was sent
LOOK_AGAIN_S = 0.5  # while an engine loads or unloads in the background, and only its list shows the end
BYTES_PER_MB = 2**20

# Answers of an engine that is up but does not list its models. Not 401 and 403: with a wrong key it cannot be used.
_CANNOT_LIST = frozenset({404, 405, 501})


# Their documented HTTP API loads and unloads a model by name, without a development mode or a second key.
_CAN_LOAD = frozenset({"llamacpp", "ollama"})


# Answers ..............................................................................................................


class _Listed(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`. OpenAI has only `id`; engines add the rest, so it may have any type."""

    id: str
    status: Any = None  # llama.cpp's router: {"value", "failed"}
    meta: Any = None  # llama.cpp: {"n_ctx", …}
    max_model_len: Any = None  # vLLM, SGLang
    limit: Any = None  # another cortex, as everything down to `locations`
    capabilities: Any = None
    tool_call: Any = None
    reasoning: Any = None
    loaded: Any = None
    feasible_on: Any = None
    locations: Any = None


class _OllamaModel(msgspec.Struct, frozen=True):
    """One entry of Ollama's `GET /api/ps`."""

    name: str
    size_vram: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)] = 0


# Calls ................................................................................................................


class EngineClient:
    """One engine's control API: a `LoadingApi` with the same rules as `NeuronClient`.

    No method has a deadline. Every method raises `NeuronError`; `NeuronRefused` with status 501 for a call that this
    engine does not support. The owner closes the client.

    Args:
        settings: Its `[[neurons]]` table, of kind "openai".
        instance: Identifies this gateway, so that it notices if the engine is itself under another name; None for none.
        transport: In place of the network, for tests.
    """

    def __init__(
        self,
        settings: NeuronSettings,
        *,
        instance: str | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        authorization = None if settings.api_key is None else bearer(settings.api_key)
        headers = None if instance is None else {POLLED_BY: instance}
        self._http = ControlHttp(settings.endpoint, authorization=authorization, headers=headers, transport=transport)
        self._listed = ModelListReader(settings.name, _Listed, attrgetter("id"))
        self._running = ModelListReader(settings.name, _OllamaModel, attrgetter("name"))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close all connections. Idempotent."""
        await self._http.aclose()

    @property
    def can_load(self) -> bool:
        """Whether the engine supports `load` and `unload`."""
        return self._settings.engine in _CAN_LOAD

    async def discovery(self) -> Discovery:
        """One device of `vram_mb` if that is configured, else none. Sends nothing."""
        total_mb = self._settings.vram_mb
        device = None if total_mb is None else (DiscoveredDevice(0, total_mb, name=self._harness),)
        return Discovery(harnesses=(self._harness,), devices=device)

    async def health(self) -> Health:
        """The readings of that device, from an engine that reports them; else nothing, and nothing is sent.

        `models` stays None: no engine counts its requests per model. Routing then goes by our own leases alone. A
        request whose client has left is not counted, although the engine may still work on it.
        """
        total_mb = self._settings.vram_mb
        if total_mb is None:
            return Health()
        used_mb = sum((await self._running_mb()).values()) if self._settings.engine == "ollama" else None
        free_mb = None if used_mb is None else max(total_mb - used_mb, 0)
        return Health(devices=(DeviceReading(0, vram_used_mb=used_mb, vram_free_mb=free_mb),))

    async def models(self) -> tuple[NeuronModel, ...]:
        """Every model that it answers for, by our ids, in its own order."""
        listed = await self._list_or_configured()
        try:
            loaded_mb = await self._running_mb() if self._settings.engine == "ollama" else {}
        except NeuronError:
            loaded_mb = {}  # for display only
        offered = {
            our_id: self._model(our_id, entry, loaded_mb) for entry in listed for our_id in self._our_ids(entry.id)
        }
        return tuple(model for model in offered.values() if model is not None)

    async def endpoint(self, model_id: str) -> str:  # noqa: ARG002 - one endpoint for all; the signature is ControlApi's
        """The configured endpoint. Sends nothing."""
        return self._settings.endpoint

    async def load(
        self,
        model_id: str,
        harness: str,  # noqa: ARG002 - this and what follows is for neurons
        *,
        quant: str | None = None,  # noqa: ARG002 - as above
        tensor_parallel: int | None = None,  # noqa: ARG002 - as above
        devices: Sequence[int] | None = None,  # noqa: ARG002 - as above
    ) -> None:
        """Return when the model is in memory. Ollama and llama.cpp's router only. Success if it is loaded already."""
        name = self._name_of(model_id)
        match self._settings.engine:
            case "ollama":
                await self._http.call("POST", "/api/generate", {"model": name, "stream": False})
            case "llamacpp":
                await self._switch_in_router("load", name)
                await self._until(name, lambda status: status == "loaded")
            case _:
                raise self._cannot("load")

    async def unload(self, model_id: str) -> None:
        """Return when the model is no longer in memory. Ollama and llama.cpp's router only.

        The engine goes on listing the model, because the next request for it loads it again.
        """
        name = self._name_of(model_id)
        match self._settings.engine:
            case "ollama":
                await self._http.call("POST", "/api/generate", {"model": name, "keep_alive": 0, "stream": False})
                while _tagged(name) in await self._running_mb():  # noqa: ASYNC110 - another machine, without events
                    await trio.sleep(LOOK_AGAIN_S)
            case "llamacpp":
                await self._switch_in_router("unload", name)
                await self._until(name, lambda status: status in {"unloaded", "failed"})
            case _:
                raise self._cannot("unload")

    # Lists ............................................................................................................

    async def _list(self) -> tuple[_Listed, ...]:
        return self._listed.read(await self._http.call("GET", f"{self._settings.base_path}/models"))

    async def _list_or_configured(self) -> tuple[_Listed, ...]:
        """The configured `models` if there are any, else what the engine lists. Either way the engine must answer."""
        configured = tuple(_Listed(name) for name in self._settings.models)
        try:
            listed = await self._list()
        except NeuronMalformed:
            if not configured:
                raise
        except NeuronRefused as refusal:
            if not configured or refusal.status not in _CANNOT_LIST:
                raise
        else:
            return configured or listed
        return configured

    async def _running_mb(self) -> dict[str, int]:
        """The models in Ollama's memory: MB of VRAM by Ollama's names."""
        running = self._running.read(await self._http.call("GET", "/api/ps"))
        return {model.name: model.size_vram // BYTES_PER_MB for model in running}

    # Names ............................................................................................................

    @property
    def _harness(self) -> str:
        return self._settings.engine or "openai"

    def _name_of(self, model_id: str) -> str:
        return self._settings.serves.get(model_id, model_id)

    def _our_ids(self, name: str) -> Iterator[str]:
        """Our ids for the engine's `name`: those that `serves` maps to it, else the name if it is not mapped."""
        serves = self._settings.serves
        mapped = [our_id for our_id, theirs in serves.items() if name in {theirs, self._canonical(theirs)}]
        yield from mapped
        if not mapped and name not in serves:
            yield name

    def _canonical(self, name: str) -> str:
        return _tagged(name) if self._settings.engine == "ollama" else name

    def _model(self, our_id: str, entry: _Listed, loaded_mb: Mapping[str, int]) -> NeuronModel | None:
        if _is_out_of_reach(entry):
            return None
        return NeuronModel(
            id=our_id,
            status=_offered_as(_status_of(entry)),
            harness=self._harness,
            vram_used_mb=loaded_mb.get(entry.id),
            capabilities=_capabilities_of(entry),
            limit=_limit_of(entry),
            tool_call=entry.tool_call if isinstance(entry.tool_call, bool) else None,
            reasoning=entry.reasoning if isinstance(entry.reasoning, bool) else None,
        )

    # Loading ..........................................................................................................

    def _cannot(self, what: str) -> NeuronRefused:
        engine = self._settings.engine or 'kind = "openai" without an `engine`'
        return NeuronRefused(
            CANNOT,
            f"cortex cannot {what} models on {self._settings.name} ({engine}): use the engine's own tools on that host",
        )

    async def _switch_in_router(self, verb: str, name: str) -> None:
        """llama.cpp's `POST /models/load` or `/models/unload`: it answers at once and works in the background."""
        try:
            await self._http.call("POST", f"/models/{verb}", {"model": name})
        except NeuronRefused as refusal:
            if refusal.status in {404, 405}:
                what = f"{self._settings.name} is a llama.cpp server with one model, or does not know {name!r}"
                raise NeuronRefused(CANNOT, f"{what}: {refusal.text}") from refusal
            if f"already {verb}ed" not in refusal.text and "already running" not in refusal.text:
                raise

    async def _until(self, name: str, reached: Callable[[str], bool]) -> None:
        """Wait until `reached` accepts the status in the router's list. Raises NeuronRefused if it has failed."""
        while not reached(status := await self._router_status(name)):
            if status == "failed":
                raise NeuronRefused(500, f"the llama.cpp router could not load {name!r}; see its log")
            await trio.sleep(LOOK_AGAIN_S)

    async def _router_status(self, name: str) -> str:
        found = next((entry for entry in await self._list() if entry.id == name), None)
        if found is None:
            raise NeuronMalformed(f"the llama.cpp router no longer lists {name!r}")
        return _status_of(found)


# Entries of the list of models ........................................................................................


def _tagged(name: str) -> str:
    """A name as Ollama lists it: it adds `:latest` to a name without a tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _status_of(entry: _Listed) -> str:
    """The status in the words of a llama.cpp router; "loaded" if the entry has none."""
    status = entry.status if isinstance(entry.status, dict) else {}
    if status.get("failed") is True:
        return "failed"
    return str(status.get("value", "loaded"))


def _offered_as(status: str) -> str:
    """Our status for a status of the router.

    The router loads and wakes a model at the first request, so `unloaded` and `sleeping` count as loaded. While it
    loads a model it holds requests back, like `reloading`. A failed or unknown status stays as it is: not routable.
    """
    return {"unloaded": "loaded", "sleeping": "loaded", "loading": "reloading"}.get(status, status)


def _is_out_of_reach(entry: _Listed) -> bool:
    """Another cortex lists its whole catalogue, also models that none of its healthy neurons could hold."""
    return isinstance(entry.feasible_on, list) and not (entry.loaded or entry.feasible_on or entry.locations)


def _capabilities_of(entry: _Listed) -> tuple[str, ...] | None:
    found = entry.capabilities
    return tuple(map(str, found)) if isinstance(found, list) else None


def _limit_of(entry: _Listed) -> TokenLimit | None:
    limit = entry.limit if isinstance(entry.limit, dict) else {}
    meta = entry.meta if isinstance(entry.meta, dict) else {}
    found = (limit.get("context"), entry.max_model_len, meta.get("n_ctx"))
    context = next((tokens for tokens in found if _is_count(tokens)), None)
    if context is None:
        return None
    input_, output = limit.get("input"), limit.get("output")
    return TokenLimit(context, input_ if _is_count(input_) else None, output if _is_count(output) else None)


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= LARGEST
