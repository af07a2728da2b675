"""What changed between two snapshots: for logs, the audit trail and pre-warming. Compares meaning, not text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from catalogue.models import Alias, Catalogue, ModelProfile

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One key of a profile; None is "not set"."""

    name: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class ModelChange:
    """A profile that stayed but says something else now."""

    id: str
    fields: tuple[FieldChange, ...]


@dataclass(frozen=True, slots=True)
class Retarget:
    """An alias that stayed but stands for another model now."""

    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class CatalogueDiff:
    """Everything sorted by name. False if nothing changed; `str()` is one line for a log."""

    models_added: tuple[str, ...] = ()
    models_removed: tuple[str, ...] = ()
    models_changed: tuple[ModelChange, ...] = ()
    aliases_added: tuple[Alias, ...] = ()
    aliases_removed: tuple[Alias, ...] = ()
    aliases_retargeted: tuple[Retarget, ...] = ()

    def __bool__(self) -> bool:
        return self != CatalogueDiff()

    def __str__(self) -> str:
        return "; ".join(self._phrases()) or "no change in meaning"

    def _phrases(self) -> Iterator[str]:
        yield from (f"~alias {alias.name}: {alias.old} -> {alias.new}" for alias in self.aliases_retargeted)
        yield from (f"+alias {alias.name} -> {alias.target}" for alias in self.aliases_added)
        yield from (f"-alias {alias.name} -> {alias.target}" for alias in self.aliases_removed)
        yield from (f"+model {model}" for model in self.models_added)
        yield from (f"-model {model}" for model in self.models_removed)
        for model in self.models_changed:
            fields = (f"{field.name} {_shown(field.old)} -> {_shown(field.new)}" for field in model.fields)
            yield f"~model {model.id}: {', '.join(fields)}"

    def as_json(self) -> dict[str, Any]:
        """The same as plain lists and dicts, for the audit trail and the admin API."""
        return dataclasses.asdict(self)


def diff(old: Catalogue, new: Catalogue) -> CatalogueDiff:
    """What someone who knew `old` has to learn."""
    return CatalogueDiff(
        models_added=tuple(sorted(new.models.keys() - old.models.keys())),
        models_removed=tuple(sorted(old.models.keys() - new.models.keys())),
        models_changed=tuple(
            ModelChange(model, _field_changes(before, after))
            for model, before, after in _in_both(old.models, new.models)
        ),
        aliases_added=tuple(new.aliases[name] for name in sorted(new.aliases.keys() - old.aliases.keys())),
        aliases_removed=tuple(old.aliases[name] for name in sorted(old.aliases.keys() - new.aliases.keys())),
        aliases_retargeted=tuple(
            Retarget(name, before.target, after.target) for name, before, after in _in_both(old.aliases, new.aliases)
        ),
    )


def _in_both(old: Mapping[str, _T], new: Mapping[str, _T]) -> Iterator[tuple[str, _T, _T]]:
    """What both have under a name, but differently."""
    for name in sorted(old.keys() & new.keys()):
        if old[name] != new[name]:
            yield name, old[name], new[name]


def _field_changes(old: ModelProfile, new: ModelProfile) -> tuple[FieldChange, ...]:
    before, after = dataclasses.asdict(old), dataclasses.asdict(new)
    return tuple(FieldChange(name, before[name], after[name]) for name in before if before[name] != after[name])


def _shown(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(str, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}={_shown(part)}' for key, part in value.items() if part is not None)}}}"
    return "unset" if value is None else str(value)
