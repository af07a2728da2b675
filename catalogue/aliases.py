"""The `[aliases]` of a `models.toml`: plain strings, or tables that say more. What they do to a request is not here.

What the keys mean to an operator is in `models.example.toml`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from catalogue.models import Alias, Hedge, Shadow, Target
from catalogue.toml import fields
from catalogue.toml.fields import Check, Field, Fields, Place

# What a request is about, as against how it is to be answered. Routing reads some of these and clients own the rest.
NOT_FOR_PARAMS = frozenset({"model", "messages", "stream", "prompt", "input"})

_PERCENT = fields.number(0, 100)
_SECONDS = fields.number(0, above=True)


def read(value: object, place: Place) -> dict[str, Alias]:
    """Every alias there is no fault in; the faults of the others are in the report.

    Raises:
        Refused: `value` is no table at all.
    """
    if not isinstance(value, dict):
        place.refuse(f"must be a table, not {fields.kind_of(value)}", "write [aliases] on a line of its own")
    model = _model_id(value)
    rows = alias_fields(model)
    aliases = {}
    for name, said in value.items():
        try:
            fields.name(name, place / name)
            if isinstance(said, dict):
                aliases[name] = _table(name, said, rows, place / name)
            else:
                aliases[name] = Alias.plain(name, _plain(said, model, place / name))
        except fields.Refused:
            continue
    return aliases


def alias_fields(model: Check) -> Fields:
    """The rows of an alias that is a table; `model` checks a model's id wherever one is named."""
    target_fields = {"model": Field(model, required=True), "weight": Field(fields.number(0))}
    return {
        "target": Field(model),
        "targets": Field(fields.array(_target(model, target_fields))),
        "sticky": Field(fields.one_of("none", "conversation", "key")),
        "fallback": Field(_distinct(fields.array(model))),
        "swap": Field(fields.one_of("warm", "cold")),
        "echo": Field(fields.one_of("model", "alias")),
        "params": Field(_params),
        "force": Field(_params),
        "deadline_seconds": Field(_SECONDS),
        "warm_deadline_seconds": Field(_SECONDS),
        "shadow": Field(
            fields.record(Shadow, {"model": Field(model, required=True), "percent": Field(_PERCENT, required=True)})
        ),
        "hedge": Field(fields.record(_hedge, {"after": Field(_hedge_after), "budget_percent": Field(_PERCENT)})),
    }


# The whole of one alias.


def _plain(value: object, model: Check, place: Place) -> str:
    said = fields.text(value, place)
    if not said.strip():
        place.refuse("has an empty target", "name a model id, or remove the alias")
    checked: str = model(said, place)
    return checked


def _table(name: str, value: dict[str, Any], rows: Fields, place: Place) -> Alias:
    if value and not value.keys() & rows.keys() and all(isinstance(inner, str | dict) for inner in value.values()):
        # `gpt-4.1 = "m"` is a table `gpt-4` with a key `1`; somebody who meant one would have got some key right.
        _refuse_as_no_alias(value, rows, place)
    already = len(place.report.faults)
    read = fields.read_fields(value, rows, place)
    if "target" not in value and "targets" not in value:
        (place / "target").fault("is required and missing", "name the model it stands for, or several in `targets`")
    elif "target" in value and "targets" in value:
        (place / "target").fault("is there beside `targets`", "keep one of the two")
    _refuse_forced_defaults(read, place)
    targets = _weighed(read, value, place)
    if len(place.report.faults) > already:
        raise fields.Refused
    return Alias(name, targets, **{key: said for key, said in read.items() if key not in {"target", "targets"}})


def _refuse_as_no_alias(value: dict[str, Any], rows: Fields, place: Place) -> None:
    near = next((fields.nearest(key, rows) for key in value), None)
    hint = f"did you mean `{near}`?" if near else "put quotes around a name that has dots in it"
    if "model" in value:
        hint = "did you mean `target`?"
    place.refuse("is a table that names neither a `target` nor `targets`", hint)


def _refuse_forced_defaults(read: Mapping[str, Any], place: Place) -> None:
    for key in read.get("params", ()):
        if key in read.get("force", ()):
            (place / "params" / key).fault("is in `force` as well, so that the default never counts", "keep one")


# Targets.


def _target(model: Check, target_fields: Fields) -> Check:
    """One of several targets, its weight None if it says none; a plain string is one without a weight."""

    def check(value: object, place: Place) -> tuple[str, float | None]:
        if not isinstance(value, dict):
            return model(value, place), None
        already = len(place.report.faults)
        read = fields.read_fields(value, target_fields, place)
        if len(place.report.faults) > already:
            raise fields.Refused
        return read["model"], read.get("weight")

    return check


def _weighed(read: Mapping[str, Any], value: Mapping[str, Any], place: Place) -> tuple[Target, ...]:
    """The targets with their weights; all are equal if none says any. Faults are in the report."""
    if "targets" not in read:
        return (Target(read["target"]),) if "target" in read else ()
    found: tuple[tuple[str, float | None], ...] = read["targets"]
    place /= "targets"
    if not found:
        place.fault("is empty", "name a model id, or remove the alias")
    _refuse_twice([model for model, _ in found], value["targets"], place)
    if len({weight is None for _, weight in found}) > 1:
        place.fault("gives some targets a weight and others none", "give each a weight, or none any")
    elif found and all(weight == 0 for _, weight in found):
        place.fault("has no target with a weight above 0", "give one of them a weight, or remove the alias")
    if len(found) == 1:  # whatever its weight, it gets everything: the same in meaning as the plain string
        return (Target(found[0][0]),)
    return tuple(Target(model, 1.0 if weight is None else weight) for model, weight in found)


def _refuse_twice(models: list[str], written: list[object], place: Place) -> None:
    for index, model in enumerate(models):
        if model in models[:index]:
            entry = place / index
            named = entry / "model" if isinstance(written[index], dict) else entry
            named.fault(f"{json.dumps(model, ensure_ascii=False)} is taken by an earlier entry")


def _distinct(check: Check) -> Check:
    def check_all(value: object, place: Place) -> tuple[str, ...]:
        found: tuple[str, ...] = check(value, place)
        already = len(place.report.faults)
        _refuse_twice(list(found), list(found), place)
        if len(place.report.faults) > already:
            raise fields.Refused
        return found

    return check_all


def _model_id(aliases: Mapping[str, object]) -> Check:
    """A concrete model's id: one step from any name to its model, so an alias is none."""

    def check(value: object, place: Place) -> str:
        model = fields.name(value, place)
        if model in aliases:
            itself = place.key[1] == model
            place.refuse(
                f"points at {'itself' if itself else 'another alias'}", _final_target_hint(aliases[model], aliases)
            )
        return model

    return check


def _final_target_hint(said: object, aliases: Mapping[str, object]) -> str:
    target = said.get("target") if isinstance(said, dict) else said
    if isinstance(target, str) and target not in aliases:
        return f'name the model itself: "{target}"'
    return "name the model itself"


# The rest.


def _params(value: object, place: Place) -> Mapping[str, str]:
    if not isinstance(value, dict):
        place.refuse(f"must be a table, not {fields.kind_of(value)}", "write it in {curly braces}")
    already = len(place.report.faults)
    read = {}
    for key, said in value.items():
        try:
            fields.name(key, place / key)
            if key in NOT_FOR_PARAMS:
                (place / key).refuse("is what the request is about, and the client's to say")
            if '"' in key or "\\" in key:
                (place / key).refuse("must not contain quotes or backslashes")
            read[key] = fields.json_text(said, place / key)
        except fields.Refused:
            continue
    if len(place.report.faults) > already:
        raise fields.Refused
    return MappingProxyType(read)


def _hedge(after: float | None = None, **budget: float) -> Hedge:
    return Hedge(after, **budget)


def _hedge_after(value: object, place: Place) -> float | None:
    if value == "p95":
        return None
    if isinstance(value, str):
        place.refuse('must be "p95" or a number of seconds')
    seconds: float = _SECONDS(value, place)
    return seconds
