"""Frozen value types: what a `models.toml` means once it has been read. No I/O; constructors check nothing.

The string below a key is its description in `cortex schema models`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo

from catalogue.toml.faults import Fault
from catalogue.toml.types import Count, Integer, Name, Number, NumberOrZero, Percent, invalid

__all__ = [
    "DEFAULT_PRIORITY",
    "PINNED_PRIORITY",
    "Alias",
    "Catalogue",
    "Cost",
    "Echo",
    "Hedge",
    "Limit",
    "ModelId",
    "ModelProfile",
    "Resolution",
    "Shadow",
    "Sticky",
    "Swap",
    "Target",
    "Warming",
]

DEFAULT_PRIORITY = 100  # also the priority of a model without a profile
PINNED_PRIORITY = 1000  # of a profile with `pinned_on` and without `residency_priority`


@dataclass(frozen=True, slots=True)
class Limit:
    """Token limits of a model."""

    context: Count | None = None
    """Tokens of prompt and response together. No default: unknown."""

    input: Count | None = None
    """Tokens of the prompt. No default: unknown."""

    output: Count | None = None
    """Tokens of the response. No default: unknown."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Prices in USD per 10^6 tokens. 0.0 is free."""

    input: NumberOrZero | None = None
    """USD per 10^6 tokens of the prompt. No default: unknown."""

    output: NumberOrZero | None = None
    """USD per 10^6 tokens of the response. No default: unknown."""

    cache_read: NumberOrZero | None = None
    """USD per 10^6 tokens read from a cache. No default: unknown."""

    cache_write: NumberOrZero | None = None
    """USD per 10^6 tokens written to a cache. No default: unknown."""


@dataclass(frozen=True, slots=True)
class ModelProfile:
    """What one model needs and what it can do."""

    id: Name
    """The name by which neurons know it. Unique, case-sensitive."""

    harness: Name
    """The neuron's harness that runs it."""

    quant: Name | None = None
    """Quantisation to load. No default: the neuron chooses."""

    vram_mb: Count | None = None
    """GPU memory it needs in all, in MB as neurons report it. No default: unknown, so it counts as fitting anywhere."""

    min_devices: Count = 1
    """Number of GPUs it is spread over evenly. Each must be able to hold its share of `vram_mb`."""

    min_device_vram_mb: Count | None = None
    """Least total memory of each GPU, in MB. No default: its share of `vram_mb`."""

    pinned_on: tuple[Name, ...] = ()
    """Names of the only neurons that may load it. Empty: any neuron."""

    residency_priority: Integer | None = None
    """Priority: it may displace models of the same or a lower number. No default: 100, or 1000 with `pinned_on`."""

    source: Name | None = None
    """Prefix of the id in a load call: "hf" loads "hf:Qwen/Qwen3-8B". No default: none."""

    capabilities: tuple[Name, ...] = ()
    """What /v1/models reports as its capabilities."""

    limit: Limit | None = None
    """Token limits. No default: unknown."""

    cost: Cost | None = None
    """Prices. No default: unknown."""

    max_concurrent: Count | None = None
    """Number of requests that one neuron gets at a time; others wait in a queue. No default: no limit."""

    idle_ttl_seconds: NumberOrZero | None = None
    """Seconds without a request after which it is unloaded. No default: [eviction] idle_ttl_seconds of cortex.toml."""

    @property
    def priority(self) -> int:
        """The priority that placement uses (`placement.may_displace`)."""
        if self.residency_priority is not None:
            return self.residency_priority
        return PINNED_PRIORITY if self.pinned_on else DEFAULT_PRIORITY


def _refuse_alias(model: str, info: ValidationInfo) -> str:
    """Refuse an alias of an alias. `aliases` of the validation context is the raw `[aliases]` table."""
    aliases: Mapping[str, object] = (info.context or {}).get("aliases", {})
    if model not in aliases:
        return model
    entry = aliases[model]
    target = entry.get("target") if isinstance(entry, dict) else entry
    is_model = isinstance(target, str) and target.strip() and target not in aliases
    raise invalid("names an alias, not a model", f'name the model: "{target}"' if is_model else "name the model")


ModelId: TypeAlias = Annotated[Name, AfterValidator(_refuse_alias)]
Sticky: TypeAlias = Literal["none", "conversation", "key"]
Swap: TypeAlias = Literal["warm", "cold"]
Echo: TypeAlias = Literal["model", "alias"]


@dataclass(frozen=True, slots=True)
class Target:
    """A model that an alias may stand for."""

    model: ModelId
    """The model's id."""

    weight: NumberOrZero = 1.0
    """Share of the requests, relative to the other targets. 0 gets none."""


@dataclass(frozen=True, slots=True)
class Shadow:
    """A candidate that answers some requests as well. Clients do not see its responses."""

    model: ModelId
    """The candidate's id."""

    percent: Percent
    """Percentage of the requests that it answers too."""


def _hedge_after(value: Any) -> Any:
    if isinstance(value, str) and value != "p95":
        raise invalid('must be "p95" or a number of seconds')
    return None if value == "p95" else value


HedgeAfter: TypeAlias = Annotated[
    Number | None, BeforeValidator(_hedge_after, json_schema_input_type=Literal["p95"] | Number)
]


@dataclass(frozen=True, slots=True)
class Hedge:
    """When a request is sent to a second replica as well. Clients get the response whose first token comes first."""

    after_seconds: Annotated[HedgeAfter, Field(alias="after")] = None
    """Seconds without a first token. Default: "p95", the 95th percentile of the alias's last 256 first tokens."""

    budget_percent: Percent = 5.0
    """Largest percentage of the requests that is sent twice."""


class Resolution(NamedTuple):
    """The model for a request, and the alias that led to it.

    `policy` is the alias itself, unless a request needs to know `model` and nothing else.
    """

    model: str
    alias: str | None
    policy: Alias | None = None


@dataclass(frozen=True, slots=True)
class Alias:
    """A name that clients use for models that operators choose.

    `targets` are in the order of the file. `params` and `force` are top-level keys of a request's body, with the JSON
    text of each value, which goes into bodies unchanged. `warm_deadline_seconds` is None for the load deadline.

    Attributes:
        target: The model with the most weight (the first of equals).
        resolution: What it means for a request, if that needs to know `target` and nothing else. None if it depends.
    """

    name: str
    targets: tuple[Target, ...]
    sticky: Sticky = "none"
    fallback: tuple[str, ...] = ()
    swap: Swap = "warm"
    echo: Echo = "model"
    clamp_max_tokens: bool | None = None
    params: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    force: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    deadline_seconds: float | None = None
    warm_deadline_seconds: float | None = None
    shadow: Shadow | None = None
    hedge: Hedge | None = None
    target: str = field(init=False, repr=False, compare=False)
    resolution: Resolution | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        more = (self.fallback, self.params, self.force, self.deadline_seconds, self.shadow, self.hedge)
        has_defaults = self.echo == "model" and self.clamp_max_tokens is None
        is_plain = len(self.targets) == 1 and has_defaults and not any(more)
        object.__setattr__(self, "target", self.by_weight[0])
        object.__setattr__(self, "resolution", Resolution(self.target, self.name) if is_plain else None)

    @classmethod
    def plain(cls, name: str, model: str) -> Alias:
        """An alias with one model and no other key."""
        return cls(name, (Target(model),))

    @property
    def by_weight(self) -> tuple[str, ...]:
        """Its models by descending weight; equals in the order of the file."""
        return tuple(target.model for target in sorted(self.targets, key=lambda target: -target.weight))

    @property
    def active(self) -> frozenset[str]:
        """The models that get requests: those with a weight above 0."""
        return frozenset(target.model for target in self.targets if target.weight > 0)


@dataclass(frozen=True, slots=True)
class Warming:
    """An alias whose new targets are not in force yet (`catalogue.warming`).

    Args:
        wanted: The alias as in the file.
        newcomers: The new targets. They must be able to serve before the alias moves.
        protects: The targets in force until then.
        failed: Why the alias will not move, or None while its warm swap goes on.
    """

    wanted: Alias
    newcomers: tuple[str, ...]
    protects: frozenset[str]
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Catalogue:
    """One immutable snapshot of what is in force: a `models.toml`, and the aliases that are still warming.

    `generation` counts the accepted files and completed warm swaps since the process started; 0 is the empty catalogue
    of a process without a file. `digest` is the SHA-256 of the file's bytes in hex, which shows whether an edit changed
    anything. `loaded_at` is in Unix seconds. `warnings` do not refuse the file.

    Attributes:
        guarded: The models that must not be unloaded, because an alias is about to move from or to them.
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
        running = [warming for warming in self.warming.values() if warming.failed is None]
        guarded = frozenset().union(*(warming.protects.union(warming.newcomers) for warming in running))
        object.__setattr__(self, "guarded", guarded)

    def kept_until_loaded(self, model: str) -> frozenset[str]:
        """The guarded models that stay loaded until `model` is: their memory is not available to it."""
        waits = [warming for warming in self.warming.values() if warming.failed is None and model in warming.newcomers]
        return frozenset().union(*(warming.protects for warming in waits))
