"""The state of a simulated neuron: devices, models and their VRAM, request slots, logs. No I/O.

Everything that changes state is synchronous, so it is atomic under Trio; `Places.hold` is the one thing that waits.
"""

from __future__ import annotations

import enum
import zlib
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from neuron.simulated.faults import FaultBook
from neuron.simulated.hardware import SimDevice, SimModel
from neuron.simulated.text import common_prefix

_LOG_LENGTH = 1024  # entries kept of each log: enough for any test, and bounded for the demo
_TOKENS_KEPT = 100_000
_PROMPTS_KEPT = 8  # prompts whose prefix a model still has in its cache


class SimRefusal(Exception):
    """A request the neuron refuses: an HTTP status, and a text and a code for `{"error": text, "code": code}`."""

    def __init__(self, status: int, text: str, *, retry_after_s: int | None = None, code: str | None = None) -> None:
        super().__init__(text)
        self.status = status
        self.text = text
        self.retry_after_s = retry_after_s
        self.code = code


class Residency(enum.StrEnum):
    """Where a model's weights are, as `/models` reports it."""

    LOADING = "loading"
    LOADED = "loaded"
    UNLOADED = "unloaded"
    ASLEEP = "asleep"


class Vocabulary:
    """Numbers for tokens, the same at every neuron. It can invert only numbers it has given out."""

    def __init__(self) -> None:
        self._tokens: dict[int, str] = {}

    def id_of(self, token: str) -> int:
        """The number of a token; remembers it."""
        number = zlib.crc32(token.encode("utf-8", "surrogatepass"))
        if len(self._tokens) >= _TOKENS_KEPT:
            self._tokens.clear()
        self._tokens[number] = token
        return number

    def token_of(self, number: int) -> str:
        """The token with this number. Raises KeyError."""
        return self._tokens[number]


class Places:
    """A model's request slots: some requests run, some queue, the rest are refused."""

    def __init__(self, model: SimModel) -> None:
        self._model = model
        self._waiting: deque[trio.Event] = deque()
        self.in_flight = 0
        self.rejected_queue_full = 0

    @property
    def queue_depth(self) -> int:
        """The number of queued requests."""
        return len(self._waiting)

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Wait for a slot and occupy it, in order of arrival.

        Raises:
            Refusal: 503, the line is full.
        """
        await self._enter()
        try:
            yield
        finally:
            self._leave()

    async def _enter(self) -> None:
        if self.in_flight < self._model.max_in_flight:
            self.in_flight += 1
            return
        if self.queue_depth >= self._model.max_queue_depth:
            self.rejected_queue_full += 1
            raise SimRefusal(503, f"model '{self._model.id}': queue full", retry_after_s=1)
        turn = trio.Event()
        self._waiting.append(turn)
        admitted = False
        try:
            await turn.wait()
            admitted = True
        finally:
            if not admitted:
                self._abandon(turn)

    def _abandon(self, turn: trio.Event) -> None:
        if turn.is_set():  # the slot was granted in the moment the client disconnected
            self._leave()
        else:
            self._waiting.remove(turn)

    def _leave(self) -> None:
        if self._waiting:
            self._waiting.popleft().set()  # the slot passes on; in_flight stays
        else:
            self.in_flight -= 1


@dataclass(slots=True)
class Resident:
    """A model that is, or was, on the neuron's devices."""

    model: SimModel
    residency: Residency
    devices: tuple[int, ...]
    vram_mb: dict[int, int]  # by device index
    places: Places
    harness: str
    asleep_level: int = 0
    host_mb: int = 0
    """Host memory of the weights of a sleeper of level 1."""
    reason: str | None = None
    """Why it sleeps."""
    progress_of: Callable[[], float] | None = None
    """Gives the fraction of its load that is done."""
    prompts: deque[tuple[str, ...]] = field(default_factory=lambda: deque(maxlen=_PROMPTS_KEPT))

    @property
    def vram_used_mb(self) -> int | None:
        """On all devices; None if it is not there."""
        if self.residency is Residency.UNLOADED:
            return None
        return sum(self.held_mb(index) for index in self.vram_mb)

    def held_mb(self, index: int) -> int:
        """VRAM that it takes on one device now: all of it while it loads, a rest while it sleeps."""
        if self.residency is Residency.UNLOADED or index not in self.vram_mb:
            return 0
        if self.residency is Residency.ASLEEP:
            return min(self.model.asleep_vram_mb // len(self.vram_mb), self.vram_mb[index])
        return self.vram_mb[index]

    def remember(self, prompt: tuple[str, ...]) -> int:
        """The number of prompt tokens found in the prefix cache; adds the prompt to it."""
        cached = max((common_prefix(prompt, known) for known in self.prompts), default=0)
        self.prompts.append(prompt)
        return min(cached, len(prompt) - 1) if prompt else 0  # the last token is always computed


@dataclass(frozen=True, slots=True)
class Received:
    """One inference request as it arrived. `at` is the clock's time; `body` is kept up to 1 MiB."""

    at: float
    path: str
    model: str
    stream: bool
    headers: tuple[tuple[str, str], ...]
    body: bytes
    body_bytes: int
    sha256: str
    files: tuple[str, ...] = ()  # the SHA-256 of each file of a form


@dataclass(frozen=True, slots=True)
class Cancelled:
    """A client that disconnected, and the phase it was in: queued, prefill, decode, hang or loading."""

    at: float
    model: str
    phase: str
    stream: bool
    request_id: str | None


@dataclass(frozen=True, slots=True)
class SimLoad:
    """One load or unload, begun or refused."""

    at: float
    action: str
    model: str
    outcome: str
    devices: tuple[int, ...] = ()


@dataclass(slots=True)
class SimActivation:
    """The models a neuron loads on its own when it starts, as `/health` reports them."""

    pending: list[str] = field(default_factory=list)
    in_progress: str | None = None
    completed: list[str] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """`pre_warming` until nothing is left to load."""
        return "pre_warming" if self.pending or self.in_progress else "ready"


class NeuronState:
    """Everything that changes in a simulated neuron.

    Args:
        name: Its hostname.
        devices: Its GPUs.
        models: What it has on disk; nothing else can be loaded.
        loaded: Ids resident from the start, in the given order.
        pre_warm: Ids it loads by itself once it runs.
        speed: How many simulated seconds pass in one of the clock's; `math.inf` takes no time at all.
        host_memory_mb: What the host has for the weights of models that sleep at level 1.
    """

    def __init__(
        self,
        name: str,
        devices: Sequence[SimDevice],
        models: Iterable[SimModel],
        *,
        loaded: Sequence[str] = (),
        pre_warm: Sequence[str] = (),
        speed: float = 1.0,
        host_memory_mb: int = 65_536,
    ) -> None:
        self.name = name
        self.host_memory_mb = host_memory_mb
        self.devices = tuple(devices)
        self.models = {model.id: model for model in models}
        self._speed = speed
        self._other_speed = trio.Event()
        self.port = 13131
        self.max_prompt_tokens: int | None = None  # for every model
        self.load_survives_client = False  # True: a load goes on after its client disconnects
        self.faults = FaultBook()
        self.vocabulary = Vocabulary()
        self._loaded_at_start = tuple(loaded)
        self._pre_warm = tuple(pre_warm)
        self.started_at: float | None = None
        self.restart()
        self.reset()

    # ---- start and restart

    def start(self) -> None:
        """Start the clock of `uptime_secs`, if it is not running."""
        if self.started_at is None:
            self.started_at = trio.current_time()

    def restart(self) -> None:
        """Behave as after a crash of the daemon: uptime 0, the models of its start. Counters and logs stay."""
        self.started_at = None
        self.residents: dict[str, Resident] = {}
        self.activation = SimActivation(pending=list(self._pre_warm))
        for model_id in self._loaded_at_start:
            self._place(model_id, None, None, None).residency = Residency.LOADED

    def reset(self) -> None:
        """Clear counters, logs, violations and faults. Models stay as they are."""
        self.faults.clear()
        self.counters: Counter[str] = Counter()
        self.violations: list[str] = []
        self.requests: deque[Received] = deque(maxlen=_LOG_LENGTH)
        self.cancelled: deque[Cancelled] = deque(maxlen=_LOG_LENGTH)
        self.loads: deque[SimLoad] = deque(maxlen=_LOG_LENGTH)

    # ---- time

    @property
    def speed(self) -> float:
        """Simulated seconds per second of the clock. A new speed applies at once, also to what is under way."""
        return self._speed

    @speed.setter
    def speed(self, speed: float) -> None:
        self._speed = speed
        self._other_speed.set()
        self._other_speed = trio.Event()

    def real_s(self, simulated_s: float) -> float:
        """Seconds of the clock that a simulated time takes."""
        return simulated_s / self._speed

    async def sleep_until(self, due: Callable[[], float]) -> None:
        """Wait until `due()`, a time by Trio's clock that is evaluated again when the speed changes."""
        while True:
            with trio.move_on_at(due()) as waiting:
                await self._other_speed.wait()
            if waiting.cancelled_caught:
                return

    # ---- models

    def model_named(self, name: str) -> SimModel:
        """The model on disk under this name; `source:id` names the same model as `id`.

        Raises:
            Refusal: 400, there is no such model.
        """
        model = self.models.get(name) or self.models.get(name.partition(":")[2])
        if model is None:
            raise SimRefusal(400, f"unknown model '{name}'")
        return model

    def loaded(self, model_id: str) -> Resident | None:
        """The resident with this exact id, if it is loaded."""
        resident = self.residents.get(model_id)
        return resident if resident is not None and resident.residency is Residency.LOADED else None

    def vram_used_mb(self, index: int) -> int:
        """VRAM that the models on one device take, including models that are loading or asleep."""
        return sum(resident.held_mb(index) for resident in self.residents.values())

    def vram_free_mb(self, index: int) -> int:
        """VRAM that is free on one device."""
        return self.devices[index].vram_total_mb - self.vram_used_mb(index)

    def begin_load(
        self, name: str, harness: str | None, tensor_parallel: int | None, devices: Sequence[int] | None
    ) -> Resident:
        """Take the VRAM for a load; it is `loading` until `end_load`.

        Raises:
            Refusal: 400: unknown, loaded, being loaded, no such device, or not enough VRAM.
        """
        model = self.model_named(name)
        try:
            self._refuse_second_load(model)
            resident = self._place(model.id, harness, tensor_parallel, devices)
        except SimRefusal as refusal:
            self.log_load("load", model.id, refusal.text)
            raise
        self.log_load("load", model.id, "begun", resident.devices)
        return resident

    def end_load(self, resident: Resident, failure: str | None = None) -> None:
        """End a load or a wake: the model is loaded, or (with an error) its VRAM is free again, or it sleeps on."""
        woken = resident.asleep_level != 0
        resident.progress_of = None
        if failure is None:
            resident.residency, resident.asleep_level, resident.host_mb = Residency.LOADED, 0, 0
            self.counters["wakes" if woken else "loads"] += 1
        elif woken:
            resident.residency = Residency.ASLEEP
        elif self.residents.get(resident.model.id) is resident:
            del self.residents[resident.model.id]
        self.log_load("wake" if woken else "load", resident.model.id, failure or "loaded", resident.devices)

    def unload(self, name: str) -> None:
        """Free a model's VRAM at once. With requests in flight this counts as a violation by the caller.

        Raises:
            Refusal: 404, it is not there or still loading.
        """
        model_id = name if name in self.residents else name.partition(":")[2]
        resident = self.residents.get(model_id)
        if resident is None or resident.residency is Residency.UNLOADED:
            raise SimRefusal(404, f"model '{name}' not loaded")
        if resident.residency is Residency.LOADING:
            self.violate(f"unload of '{model_id}' while it is loading")
            raise SimRefusal(404, f"model '{name}' is loading")
        if busy := resident.places.in_flight + resident.places.queue_depth:
            self.violate(f"unload of '{model_id}' with {busy} requests in flight")
        resident.residency, resident.asleep_level, resident.host_mb = Residency.UNLOADED, 0, 0
        resident.prompts.clear()
        self.counters["unloads"] += 1
        self.log_load("unload", model_id, "unloaded", resident.devices)

    def violate(self, what: str) -> None:
        """Note something a correct gateway never does."""
        self.violations.append(what)

    def log_load(self, action: str, model_id: str, outcome: str, devices: tuple[int, ...] = ()) -> None:
        """Note one step of a load, unload, sleep or wake."""
        self.loads.append(SimLoad(trio.current_time(), action, model_id, outcome, devices))

    def _refuse_second_load(self, model: SimModel) -> None:
        resident = self.residents.get(model.id)
        if resident is None or resident.residency is Residency.UNLOADED:
            return
        if resident.residency is Residency.LOADED:
            raise SimRefusal(400, f"model '{model.id}' already loaded")
        self.violate(f"second load of '{model.id}' while it is loading")
        raise SimRefusal(
            400, f"model '{model.id}' is being loaded"
        )  # not "already loaded", which gateways take for success

    def _place(
        self, model_id: str, harness: str | None, tensor_parallel: int | None, devices: Sequence[int] | None
    ) -> Resident:
        model = self.model_named(model_id)
        shares = self._shares(model, self._chosen(model, tensor_parallel, devices))
        for index, share_mb in shares.items():
            if share_mb > self.vram_free_mb(index):
                lack = f"needs {share_mb} MB, {self.vram_free_mb(index)} MB free"
                self.violate(f"load of '{model.id}' beyond the VRAM of device {index}: {lack}")
                raise SimRefusal(400, f"not enough VRAM for '{model.id}' on device {index}: {lack}")
        resident = Resident(model, Residency.LOADING, tuple(shares), shares, Places(model), harness or model.harness)
        self.residents[model.id] = resident
        return resident

    def _chosen(self, model: SimModel, tensor_parallel: int | None, devices: Sequence[int] | None) -> list[int]:
        if devices:
            if unknown := [index for index in devices if not 0 <= index < len(self.devices)]:
                raise SimRefusal(400, f"no such device: {unknown[0]}")
            return list(devices[: tensor_parallel or len(devices)])
        emptiest = sorted(range(len(self.devices)), key=lambda index: (-self.vram_free_mb(index), index))
        if tensor_parallel is None:
            fitting = [index for index in range(len(self.devices)) if self.vram_free_mb(index) >= model.vram_mb]
            return fitting[:1] or emptiest[:1]
        if tensor_parallel > len(emptiest):
            raise SimRefusal(400, f"tensor_parallel {tensor_parallel} with {len(emptiest)} devices")
        return sorted(emptiest[:tensor_parallel])

    @staticmethod
    def _shares(model: SimModel, devices: list[int]) -> dict[int, int]:
        each, rest = divmod(model.vram_mb, len(devices))
        return {index: each + (1 if at < rest else 0) for at, index in enumerate(devices)}
