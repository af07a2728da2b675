"""The control API of servers that are no neurons, made of what they offer. How requests are addressed is `access.py`.

A neuron says what it holds, how full it is and whom it serves. An OpenAI-compatible server says which model names it
takes (`GET /v1/models`), and that must do: it is the sign of life and the list of models. Devices are unknown, so
nothing is ever placed there. What a server loads on demand counts as loaded: it will answer.

Which engine does what, and where that is written: docs/engines.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Annotated, Any, Self

import httpx
import msgspec
import trio

from gateway.config.settings import NeuronSettings
from gateway.fleet.control.neuron_client import ControlHttp, decode
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

__all__ = ["EngineClient"]

CANNOT = 501  # `NeuronRefused.status` for what an engine has no way to do: nobody was asked
LOOK_AGAIN_S = 0.5  # while an engine loads or unloads in the background and only its list tells when it is done
BYTES_PER_MB = 2**20

# Answers of an engine that is there and merely does not list its models. 401 and 403 are not among them: a wrong key is
# a neuron nobody can use.
_CANNOT_LIST = frozenset({404, 405, 501})


# Those whose documented HTTP API loads and unloads a model by its name, needs no development mode and no second key.
_CAN_LOAD = frozenset({"llamacpp", "ollama"})


# What they list .......................................................................................................


class _Listed(msgspec.Struct, frozen=True):
    """One entry of `GET /v1/models`. Only `id` is OpenAI's; the rest is what some engine adds, hence of any type."""

    id: str
    status: Any = None  # llama.cpp's router: {"value", "failed"}
    meta: Any = None  # llama.cpp: {"n_ctx", …}
    max_model_len: Any = None  # vLLM, SGLang
    limit: Any = None  # cortex, and so on to `locations`
    capabilities: Any = None
    tool_call: Any = None
    reasoning: Any = None
    loaded: Any = None
    feasible_on: Any = None
    locations: Any = None


class _List(msgspec.Struct, frozen=True):
    """`GET /v1/models`; `data` is null at an Ollama without models."""

    data: tuple[_Listed, ...] | None


class _Running(msgspec.Struct, frozen=True):
    """One entry of Ollama's `GET /api/ps`."""

    name: str
    size_vram: Annotated[int, msgspec.Meta(ge=0, le=LARGEST)] = 0


class _RunningList(msgspec.Struct, frozen=True):
    models: tuple[_Running, ...] | None = None


# Asking ...............................................................................................................


class EngineClient:
    """One engine's control API: a `control_api.LoadingApi`, as `NeuronClient` is, and with the same manners.

    No method has a deadline of its own. Every method raises `NeuronError`; `NeuronRefused` with status 501 for what
    this engine cannot be asked to do. Whoever builds a client closes it.

    Args:
        settings: Its `[[neurons]]` table, of kind "openai".
        transport: In place of the network, for tests.
    """

    def __init__(self, settings: NeuronSettings, *, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._settings = settings
        authorization = None if settings.api_key is None else bearer(settings.api_key)
        self._http = ControlHttp(settings.endpoint, authorization=authorization, transport=transport)

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
        """Whether `load` and `unload` do anything but refuse."""
        return self._settings.engine in _CAN_LOAD

    async def discovery(self) -> Discovery:
        """Nothing, but for one device that stands for `vram_mb` where the operator gave it. Asks nobody."""
        total_mb = self._settings.vram_mb
        device = None if total_mb is None else (DiscoveredDevice(0, total_mb, name=self._harness),)
        return Discovery(harnesses=(self._harness,), devices=device)

    async def health(self) -> Health:
        """How full that device is, from an engine that says so; else nothing, and nobody is asked.

        `models` stays None: no engine counts per model what it is at. Routing goes by our own leases alone then, and a
        request whose client left is forgotten here although an engine that does not notice works on for it.
        """
        total_mb = self._settings.vram_mb
        if total_mb is None:
            return Health()
        used_mb = sum((await self._running_mb()).values()) if self._settings.engine == "ollama" else None
        free_mb = None if used_mb is None else max(total_mb - used_mb, 0)
        return Health(devices=(DeviceReading(0, vram_used_mb=used_mb, vram_free_mb=free_mb),))

    async def models(self) -> tuple[NeuronModel, ...]:
        """Every model it would answer for, under our ids, in its own order."""
        listed = await self._list_or_configured()
        try:
            held_mb = await self._running_mb() if self._settings.engine == "ollama" else {}
        except NeuronError:
            held_mb = {}  # an ornament
        offered = {
            our_id: self._model(our_id, entry, held_mb) for entry in listed for our_id in self._our_ids(entry.id)
        }
        return tuple(model for model in offered.values() if model is not None)

    async def endpoint(self, model_id: str) -> str:  # noqa: ARG002 - one endpoint for all; the signature is ControlApi's
        """The configured endpoint. Asks nobody."""
        return self._settings.endpoint

    async def load(
        self,
        model_id: str,
        harness: str,  # noqa: ARG002 - an engine is its own harness; it, `quant` and the rest are for neurons
        *,
        quant: str | None = None,  # noqa: ARG002 - as above
        tensor_parallel: int | None = None,  # noqa: ARG002 - as above
        devices: Sequence[int] | None = None,  # noqa: ARG002 - as above
    ) -> None:
        """Return when the model is in memory. Ollama and llama.cpp's router only; loaded already is success."""
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

        It stays in the list of models, because the next request for it loads it again.
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
        return decode(await self._http.call("GET", f"{self._settings.base_path}/models"), _List).data or ()

    async def _list_or_configured(self) -> tuple[_Listed, ...]:
        """What it lists; the operator's list goes before, and then any sign of life will do."""
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
        """What Ollama has in memory, in MB of VRAM by its own names."""
        running = decode(await self._http.call("GET", "/api/ps"), _RunningList).models or ()
        return {model.name: model.size_vram // BYTES_PER_MB for model in running}

    # Names ............................................................................................................

    @property
    def _harness(self) -> str:
        return self._settings.engine or "openai"

    def _name_of(self, model_id: str) -> str:
        return self._settings.serves.get(model_id, model_id)

    def _our_ids(self, name: str) -> Iterator[str]:
        """What we call the engine's `name`: what `serves` says, else the same, unless `serves` says that is another."""
        serves = self._settings.serves
        mapped = [our_id for our_id, theirs in serves.items() if name in {theirs, self._canonical(theirs)}]
        yield from mapped
        if not mapped and name not in serves:
            yield name

    def _canonical(self, name: str) -> str:
        return _tagged(name) if self._settings.engine == "ollama" else name

    def _model(self, our_id: str, entry: _Listed, held_mb: Mapping[str, int]) -> NeuronModel | None:
        if _is_out_of_reach(entry):
            return None
        return NeuronModel(
            id=our_id,
            status=_offered_as(_status_of(entry)),
            harness=self._harness,
            vram_used_mb=held_mb.get(entry.id),
            capabilities=_capabilities_of(entry),
            limit=_limit_of(entry),
            tool_call=entry.tool_call if isinstance(entry.tool_call, bool) else None,
            reasoning=entry.reasoning if isinstance(entry.reasoning, bool) else None,
        )

    # Loading ..........................................................................................................

    def _cannot(self, what: str) -> NeuronRefused:
        who = self._settings.engine or 'kind = "openai" without an `engine`'
        return NeuronRefused(CANNOT, f"cortex cannot {what} a model at {self._settings.name} ({who}): do it there")

    async def _switch_in_router(self, verb: str, name: str) -> None:
        """llama.cpp's `POST /models/load` or `/models/unload`: it answers at once and goes on in the background."""
        try:
            await self._http.call("POST", f"/models/{verb}", {"model": name})
        except NeuronRefused as refusal:
            if refusal.status in {404, 405}:
                what = f"{self._settings.name} is a llama.cpp server with one model, or does not know {name!r}"
                raise NeuronRefused(CANNOT, f"{what}: {refusal.text}") from refusal
            if f"already {verb}ed" not in refusal.text and "already running" not in refusal.text:
                raise

    async def _until(self, name: str, reached: Callable[[str], bool]) -> None:
        """Wait until the router lists the model in a state we want, or as failed."""
        while not reached(status := await self._router_status(name)):
            if status == "failed":
                raise NeuronRefused(500, f"the llama.cpp router could not load {name!r}; its log says why")
            await trio.sleep(LOOK_AGAIN_S)

    async def _router_status(self, name: str) -> str:
        found = next((entry for entry in await self._list() if entry.id == name), None)
        if found is None:
            raise NeuronMalformed(f"the llama.cpp router no longer lists {name!r}")
        return _status_of(found)


# Reading an entry .....................................................................................................


def _tagged(name: str) -> str:
    """A name as Ollama lists it: `:latest` is what it adds to one without a tag."""
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


def _status_of(entry: _Listed) -> str:
    """As a llama.cpp router has it; "loaded" where nothing is said."""
    status = entry.status if isinstance(entry.status, dict) else {}
    if status.get("failed") is True:
        return "failed"
    return str(status.get("value", "loaded"))


def _offered_as(status: str) -> str:
    """The router's states as ours.

    It loads at the first request and wakes from sleep, so both count as loaded; one that is loading holds requests
    until it is done, which is our `reloading`. A failed one or an unknown state stays what it is, which nobody routes.
    """
    return {"unloaded": "loaded", "sleeping": "loaded", "loading": "reloading"}.get(status, status)


def _is_out_of_reach(entry: _Listed) -> bool:
    """A cortex lists its whole catalogue, what no healthy neuron of its own could hold included."""
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
