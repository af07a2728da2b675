"""The differences between two catalogues, for logs, the audit log and plans. Compares meaning, not text."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from catalogue.models import Alias, Catalogue, Hedge, ModelProfile, Shadow, Target

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One key of a profile or an alias, with its values as JSON. None is "not set"."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A profile that is in both catalogues, with different keys."""

    id: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class AliasChange:
    """An alias that is in both catalogues, with different keys."""

    old: Alias
    new: Alias

    @property
    def name(self) -> str:
        """The alias's name."""
        return self.new.name

    @property
    def fields(self) -> tuple[FieldChange, ...]:
        """The keys that differ, in the order of `alias_json`; never empty."""
        before, after = alias_json(self.old), alias_json(self.new)
        return tuple(FieldChange(key, before[key], after[key]) for key in before if before[key] != after[key])

    @property
    def moves_traffic(self) -> bool:
        """Whether the targets or their weights differ."""
        return self.old.targets != self.new.targets


@dataclass(frozen=True, slots=True)
class SwapFailure:
    """An alias whose warm swap has failed; `wanted` is the alias as in the file."""

    wanted: Alias
    reason: str


@dataclass(frozen=True, slots=True)
class CatalogueDiff:
    """All differences, sorted by name. False if there are none; `str()` is one line for a log.

    `aliases_changed` are in force; `aliases_warming` will be once their new targets can serve.
    """

    models_added: tuple[str, ...] = ()
    models_removed: tuple[str, ...] = ()
    models_changed: tuple[ModelChange, ...] = ()
    aliases_added: tuple[Alias, ...] = ()
    aliases_removed: tuple[Alias, ...] = ()
    aliases_changed: tuple[AliasChange, ...] = ()
    aliases_warming: tuple[AliasChange, ...] = ()
    swaps_failed: tuple[SwapFailure, ...] = ()

    def __bool__(self) -> bool:
        return self != CatalogueDiff()

    def __str__(self) -> str:
        return "; ".join(self._phrases()) or "no change in meaning"

    def _phrases(self) -> Iterator[str]:
        yield from (f"~alias {alias.name}: {', '.join(_alias_phrases(alias))}" for alias in self.aliases_changed)
        yield from (f"~alias {alias.name}: {_move(alias)} once warm" for alias in self.aliases_warming)
        yield from (f"!alias {swap.wanted.name}: not moved: {swap.reason}" for swap in self.swaps_failed)
        yield from (f"+alias {alias.name} -> {shown_targets(alias)}" for alias in self.aliases_added)
        yield from (f"-alias {alias.name} -> {shown_targets(alias)}" for alias in self.aliases_removed)
        yield from (f"+model {model}" for model in self.models_added)
        yield from (f"-model {model}" for model in self.models_removed)
        for model in self.models_changed:
            yield f"~model {model.id}: {', '.join(map(_shown_change, model.fields))}"

    def as_json(self) -> dict[str, Any]:
        """The differences as lists and dicts, for the audit log and the admin API."""
        return {
            "models_added": list(self.models_added),
            "models_removed": list(self.models_removed),
            "models_changed": [dataclasses.asdict(change) for change in self.models_changed],
            "aliases_added": [{"name": alias.name, **alias_json(alias)} for alias in self.aliases_added],
            "aliases_removed": [{"name": alias.name, **alias_json(alias)} for alias in self.aliases_removed],
            "aliases_changed": [_change_json(change) for change in self.aliases_changed],
            "aliases_warming": [_change_json(change) for change in self.aliases_warming],
            "swaps_failed": [{"name": swap.wanted.name, "reason": swap.reason} for swap in self.swaps_failed],
        }


def diff(old: Catalogue, new: Catalogue) -> CatalogueDiff:
    """The differences of `new` from `old`."""
    return CatalogueDiff(
        models_added=tuple(sorted(new.models.keys() - old.models.keys())),
        models_removed=tuple(sorted(old.models.keys() - new.models.keys())),
        models_changed=tuple(
            ModelChange(model, _field_changes(before, after))
            for model, before, after in _in_both(old.models, new.models)
        ),
        aliases_added=tuple(new.aliases[name] for name in sorted(new.aliases.keys() - old.aliases.keys())),
        aliases_removed=tuple(old.aliases[name] for name in sorted(old.aliases.keys() - new.aliases.keys())),
        aliases_changed=tuple(AliasChange(before, after) for _, before, after in _in_both(old.aliases, new.aliases)),
        aliases_warming=tuple(_begun(old, new)),
        swaps_failed=tuple(_failed(old, new)),
    )


def _begun(old: Catalogue, new: Catalogue) -> Iterator[AliasChange]:
    """The aliases whose warm swap began with `new`, or got other targets with it."""
    for name, warming in sorted(new.warming.items()):
        before = old.warming.get(name)
        was_warming = before is not None and before.failed is None and before.wanted.targets == warming.wanted.targets
        if warming.failed is None and not was_warming:
            yield AliasChange(new.aliases[name], warming.wanted)


def _failed(old: Catalogue, new: Catalogue) -> Iterator[SwapFailure]:
    for name, warming in sorted(new.warming.items()):
        before = old.warming.get(name)
        if warming.failed is not None and (before is None or before.failed != warming.failed):
            yield SwapFailure(warming.wanted, warming.failed)


def alias_json(alias: Alias) -> dict[str, Any]:
    """The keys of an alias as JSON, with the names that they have in the file; without the alias's own name."""
    return {
        "targets": [dataclasses.asdict(target) for target in alias.targets],
        "sticky": alias.sticky,
        "fallback": list(alias.fallback),
        "swap": alias.swap,
        "echo": alias.echo,
        "clamp_max_tokens": alias.clamp_max_tokens,
        "params": {key: json.loads(value) for key, value in alias.params.items()},
        "force": {key: json.loads(value) for key, value in alias.force.items()},
        "deadline_seconds": alias.deadline_seconds,
        "warm_deadline_seconds": alias.warm_deadline_seconds,
        "shadow": None if alias.shadow is None else _shadow_json(alias.shadow),
        "hedge": None if alias.hedge is None else _hedge_json(alias.hedge),
    }


def _shadow_json(shadow: Shadow) -> dict[str, Any]:
    return {"model": shadow.model, "percent": shadow.percent}


def _hedge_json(hedge: Hedge) -> dict[str, Any]:
    after = "p95" if hedge.after_seconds is None else hedge.after_seconds
    return {"after": after, "budget_percent": hedge.budget_percent}


def _change_json(change: AliasChange) -> dict[str, Any]:
    return {"name": change.name, "fields": [dataclasses.asdict(field) for field in change.fields]}


def _in_both(old: Mapping[str, _T], new: Mapping[str, _T]) -> Iterator[tuple[str, _T, _T]]:
    """The entries that both have under one name and that differ."""
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield name, old[name], new[name]


def _field_changes(old: ModelProfile, new: ModelProfile) -> tuple[FieldChange, ...]:
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return tuple(FieldChange(name, before[name], after[name]) for name in before if before[name] != after[name])


# Text for logs.


def _alias_phrases(change: AliasChange) -> Iterator[str]:
    """The targets come first: they are what operators change most."""
    if change.moves_traffic:
        yield _move(change)
    yield from (_shown_change(field) for field in change.fields if field.name != "targets")


def _move(change: AliasChange) -> str:
    return f"{shown_targets(change.old)} -> {shown_targets(change.new)}"


def shown_targets(alias: Alias) -> str:
    """The alias's model, or its models with their weights."""
    return alias.target if len(alias.targets) == 1 else f"[{', '.join(map(_shown_target, alias.targets))}]"


def _shown_target(target: Target) -> str:
    return f"{target.model} {target.weight:g}"


def _shown_change(field: FieldChange) -> str:
    return f"{field.name} {_shown(field.old)} -> {_shown(field.new)}"


def _shown(value: Any) -> str:
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={_shown(part)}' for key, part in value.items() if part is not None)}}}"
    return "unset" if value is None else str(value)
