"""The `[aliases]` of a `models.toml`: plain strings or tables. How they change a request is in `gateway.proxy`.

What the keys mean is in `models.example.toml`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Annotated, Any, TypeAlias

from pydantic import BeforeValidator, ValidationError
from pydantic_core import InitErrorDetails

from catalogue.models import Alias, Echo, Hedge, ModelId, Shadow, Sticky, Swap, Target
from catalogue.toml.positions import KeyPath
from catalogue.toml.types import (
    LARGEST_INTEGER,
    CheckedTable,
    Flag,
    Name,
    Number,
    checked,
    invalid,
    kind_of,
    parsed_from,
)
from catalogue.toml.validate import nearest

__all__ = ["AliasTable", "AliasTables", "to_alias"]

# Routing reads some of these keys of a body before aliases apply; the others are what the client asks.
_KEYS_OF_THE_CLIENT = frozenset({"model", "messages", "stream", "prompt", "input"})
_DEEPEST_JSON = 16  # levels of nesting; parameters of requests need three or four


def _parameters(table: dict[str, Any]) -> Mapping[str, str]:
    """Each value as JSON. TOML has dates, NaN and infinity, which JSON has not."""
    errors: list[InitErrorDetails] = []
    for key, value in table.items():
        if key in _KEYS_OF_THE_CLIENT:
            errors.append(_error((key,), "cannot be set by an alias: only the client sets it"))
        elif '"' in key or "\\" in key:
            errors.append(_error((key,), "must not contain quotes or backslashes"))
        elif (error := _not_json(value, (key,))) is not None:
            errors.append(error)
    if errors:
        raise ValidationError.from_exception_data("parameters", errors)
    return MappingProxyType({key: json.dumps(value, ensure_ascii=False) for key, value in table.items()})


def _not_json(value: object, key: KeyPath) -> InitErrorDetails | None:
    """The first part of a value that JSON cannot represent."""
    if len(key) > _DEEPEST_JSON:
        return _error(key, f"is nested more than {_DEEPEST_JSON} levels deep")
    if isinstance(value, dict | list):
        parts: Any = value.items() if isinstance(value, dict) else enumerate(value)
        errors = (_not_json(inner, (*key, part)) for part, inner in parts)
        return next((error for error in errors if error is not None), None)
    if isinstance(value, int | float):
        if -LARGEST_INTEGER <= value <= LARGEST_INTEGER:  # false for NaN
            return None
        return _error(key, "must be a finite number below 2^53")
    if isinstance(value, str):
        return None
    return _error(key, f"must be a value that JSON has, not {kind_of(value)}", "write it as a string, in quotes")


def _error(key: KeyPath, message: str, hint: str | None = None) -> InitErrorDetails:
    return InitErrorDetails(type=invalid(message, hint), loc=key, input=None)


Parameters: TypeAlias = Annotated[Mapping[str, str], parsed_from(dict[Name, Any], _parameters)]


# Targets.


def _target_from_string(value: object) -> object:
    return value if isinstance(value, dict) else {"model": value}


def _check_targets(array: CheckedTable) -> None:
    if array.value is None:
        return
    targets: tuple[Target, ...] = array.value
    if not targets:
        array.refuse((), "is empty", "name a model id, or remove the alias")
    _refuse_repeated([target.model for target in targets], array, "model")
    has_weight = {isinstance(entry, dict) and "weight" in entry for entry in array.raw}
    if len(has_weight) > 1:
        array.refuse((), "gives some targets a weight and others none", "give all of them a weight, or none")
    elif targets and all(target.weight == 0 for target in targets):
        array.refuse((), "has no target with a weight above 0", "give one of them a weight, or remove the alias")


def _check_fallback(array: CheckedTable) -> None:
    if array.value is not None:
        _refuse_repeated(array.value, array)


def _refuse_repeated(models: Sequence[str], array: CheckedTable, *key: str) -> None:
    for index, model in enumerate(models):
        if model in models[:index]:
            array.refuse((index, *key), f"{json.dumps(model, ensure_ascii=False)} is already used by an earlier entry")


TargetEntry: TypeAlias = Annotated[
    Target, BeforeValidator(_target_from_string, json_schema_input_type=ModelId | Target)
]


# One alias.


@dataclass(frozen=True, slots=True)
class AliasTable:
    """An alias with more than a target. It must have `target` or `targets`."""

    target: ModelId | None = None
    """Id of the model that gets the requests. No default: required without `targets`."""

    targets: Annotated[tuple[TargetEntry, ...], checked(_check_targets)] = ()
    """Several models that share the requests by weight."""

    sticky: Sticky = "none"
    """What keeps its target: "none" (each request is drawn by itself), "conversation", or "key" (the API key)."""

    fallback: Annotated[tuple[ModelId, ...], checked(_check_fallback)] = ()
    """Models to try in order if no neuron can serve the target."""

    swap: Swap = "warm"
    """How a new target takes over: "warm" (once it is loaded and has answered a probe) or "cold" (at once)."""

    echo: Echo = "model"
    """The `model` of a response: "model" (as the neuron reports it) or "alias" (as the client asked)."""

    clamp_max_tokens: Flag | None = None
    """Whether to lower `max_tokens` if it leaves no room for the prompt. No default: true for translated requests."""

    params: Parameters = field(default_factory=dict)
    """Members of a request's body, for clients that do not set them."""

    force: Parameters = field(default_factory=dict)
    """Members of a request's body that replace what the client sets."""

    deadline_seconds: Number | None = None
    """Seconds that a whole request may take. No default: only the deadlines of its phases apply."""

    warm_deadline_seconds: Number | None = None
    """Seconds that a warm swap may take. No default: [deadlines] load_seconds of cortex.toml."""

    shadow: Shadow | None = None
    """A candidate that answers some requests as well, for comparison. No default: none."""

    hedge: Hedge | None = None
    """When to send a slow request to a second neuron. No default: never."""


def to_alias(name: str, table: AliasTable) -> Alias:
    """The alias that a table describes."""
    targets = table.targets if table.target is None else (Target(table.target),)
    if len(targets) == 1:  # a single target gets all requests, whatever its weight
        targets = (Target(targets[0].model),)
    others = {key.name: getattr(table, key.name) for key in fields(table) if key.name not in {"target", "targets"}}
    return Alias(name, targets, **others)


def _table_from_string(value: object) -> object:
    if isinstance(value, str) and not value.strip():
        raise invalid("has an empty target", "name a model id, or remove the alias")
    if not isinstance(value, dict):
        return {"target": value}
    known = [key.name for key in fields(AliasTable)]
    if value and not value.keys() & set(known) and all(isinstance(inner, str | dict) for inner in value.values()):
        # `gpt-4.1 = "m"` is a table `gpt-4` with a key `1`. A table that was meant would have one known key.
        near = next((nearest(key, known) for key in value), None)
        hint = f"did you mean `{near}`?" if near else "put quotes around a name that has dots in it"
        message = "is a table that names neither a `target` nor `targets`"
        raise invalid(message, "did you mean `target`?" if "model" in value else hint)
    return value


def _check_alias(alias: CheckedTable) -> None:
    table = alias.raw
    if "target" not in table and "targets" not in table:
        hint = "name the model that gets the requests, or several in `targets`"
        alias.refuse(("target",), "is required and missing", hint)
    elif "target" in table and "targets" in table:
        alias.refuse(("target",), "cannot be combined with `targets`", "keep one of the two")
    if alias.is_good("params") and alias.is_good("force"):
        for key in table.get("params", ()):
            if key in table.get("force", ()):
                message = "is in `force` as well, so this default is never used"
                alias.refuse(("params", key), message, "keep one of the two")


AliasTables: TypeAlias = Mapping[
    Name,
    Annotated[
        AliasTable,
        checked(_check_alias),
        BeforeValidator(_table_from_string, json_schema_input_type=ModelId | AliasTable),
    ],
]
