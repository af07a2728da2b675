"""Frozen value types: what a `models.toml` means once it has been read. No parsing, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

DEFAULT_PRIORITY = 100  # contract section 6; also what a model without a profile counts as
PINNED_PRIORITY = 1000  # a pinned profile without a priority of its own


@dataclass(frozen=True, slots=True)
class Limit:
    """Token limits of a model; None where unknown."""

    context: int | None = None
    input: int | None = None
    output: int | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """USD per 10^6 tokens. None is unknown, 0.0 is free."""

    input: float | None = None
    output: float | None = None
    cache_read: float | None = None
    cache_write: float | None = None


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """One `[[models]]` entry: what a model needs and what it can do.

    `vram_mb` and `min_device_vram_mb` are in MB as neurons report them. `source` prefixes the id in a load call
    (`source:id`). `residency_priority` is as written; `priority` is what placement uses.
    """

    id: str
    harness: str
    quant: str | None = None
    vram_mb: int | None = None
    min_devices: int = 1
    min_device_vram_mb: int | None = None
    pinned_on: tuple[str, ...] = ()
    residency_priority: int | None = None
    source: str | None = None
    capabilities: tuple[str, ...] = ()
    limit: Limit | None = None
    cost: Cost | None = None
    max_concurrent: int | None = None
    idle_ttl_seconds: float | None = None

    @property
    def priority(self) -> int:
        """The residency class: who may displace whom (`placement.may_displace`)."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_PRIORITY if self.pinned_on else DEFAULT_PRIORITY


Sticky: TypeAlias = Literal["none", "conversation", "key"]
Swap: TypeAlias = Literal["warm", "cold"]
Echo: TypeAlias = Literal["model", "alias"]


@dataclass(frozen=True, slots=True)
class Target:
    """A model an alias may stand for. Weights are relative to those of the others; 0 gets no requests."""

    model: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate that answers `percent` of the requests a second time, for nobody but the operator."""

    model: str
    percent: float


@dataclass(frozen=True, slots=True)
class Hedge:
    """When a second replica is asked as well: after so many seconds without a token, None for the alias's own p95.

    `budget_percent` is how many requests of a hundred may be asked twice.
    """

    after_seconds: float | None = None
    budget_percent: float = 5.0


@dataclass(frozen=True, slots=True)
class Alias:
    """A name clients use for models operators choose.

    `targets` are in the file's order. `params` and `force` are top-level keys of a request's body with the JSON that
    stands for each value: it goes into bodies as it is, and nobody can change it in a snapshot. `warm_deadline_seconds`
    None means as long as a load may take.

    Attributes:
        target: The model it stands for; of several, the one with the most weight (the first of equals).
        is_plain: Whether a request needs to know `target` and nothing else.
    """

    name: str
    targets: tuple[Target, ...]
    sticky: Sticky = "none"
    fallback: tuple[str, ...] = ()
    swap: Swap = "warm"
    echo: Echo = "model"
    params: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    force: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    deadline_seconds: float | None = None
    warm_deadline_seconds: float | None = None
    shadow: Shadow | None = None
    hedge: Hedge | None = None
    target: str = field(init=False, repr=False, compare=False)
    is_plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        more = (self.fallback, self.params, self.force, self.deadline_seconds, self.shadow, self.hedge)
        is_plain = len(self.targets) == 1 and self.echo == "model" and not any(more)
        object.__setattr__(self, "target", self.by_weight[0])
        object.__setattr__(self, "is_plain", is_plain)

    @classmethod
    def plain(cls, name: str, model: str) -> Alias:
        """The common case: one model and nothing else."""
        return cls(name, (Target(model),))

    @property
    def by_weight(self) -> tuple[str, ...]:
        """Its models, the one with the most weight first; equals in the file's order."""
        return tuple(target.model for target in sorted(self.targets, key=lambda target: -target.weight))

    @property
    def active(self) -> frozenset[str]:
        """The models its requests may go to: those whose weight is not 0."""
        return frozenset(target.model for target in self.targets if target.weight > 0)


@dataclass(frozen=True, slots=True)
class Warming:
    """What the file says of an alias that does not stand for it yet (`catalogue.warming`).

    Args:
        wanted: The alias as the file has it.
        newcomers: The models that must be able to serve before it moves; the alias had none of them.
        protects: The models it stands for until then.
        failed: Why it will not move, or None while that is still being worked at.
    """

    wanted: Alias
    newcomers: tuple[str, ...]
    protects: frozenset[str]
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One immutable snapshot of what is in force: a `models.toml`, and which of its aliases still wait.

    `generation` counts what came into force since the process started, accepted files and aliases that moved once they
    were warm: 0 is the empty catalogue of a process that has no file. `digest` is the SHA-256 of the file's bytes in
    hex, so that an edit which changes nothing can be told from one that does. `loaded_at` is in unix seconds.
    `warnings` are faults that do not refuse the file.

    Attributes:
        guarded: The models that nobody may unload, because an alias is about to move from or to them.
    """

    generation: int = 0
    models: Mapping[str, ModelProfile] = field(default_factory=lambda: MappingProxyType({}))
    aliases: Mapping[str, Alias] = field(default_factory=lambda: MappingProxyType({}))
    path: str | None = None
    digest: str | None = None
    loaded_at: float = 0.0
    warnings: tuple[Fault, ...] = ()
    warming: Mapping[str, Warming] = field(default_factory=lambda: MappingProxyType({}))
    guarded: frozenset[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        under_way = [warming for warming in self.warming.values() if warming.failed is None]
        guarded = frozenset().union(*(warming.protects.union(warming.newcomers) for warming in under_way))
        object.__setattr__(self, "guarded", guarded)

    def kept_until_loaded(self, model: str) -> frozenset[str]:
        """The guarded models that stay until `model` is there: it can never have their room."""
        waits = [warming for warming in self.warming.values() if warming.failed is None and model in warming.newcomers]
        return frozenset().union(*(warming.protects for warming in waits))


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing wrong with a file, for a person with an editor open.

    Args:
        path: The file as the operator named it.
        line: 1-based; None when the file as a whole is at fault (missing, unreadable).
        key: Dotted (`models[2].min_devices`, `aliases."helexa/small"`); None for the file as a whole.
        message: What is wrong.
        hint: What to do about it, or None.
    """

    path: str
    line: int | None
    key: str | None
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        what = self.message if self.key is None else f"{self.key}: {self.message}"
        return f"{place}: {what}" + (f"; {self.hint}" if self.hint else "")


class FaultyFile(Exception):
    """A file that cannot be accepted, with every reason at once. Nothing of it is in force."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults
