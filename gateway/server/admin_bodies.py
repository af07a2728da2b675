"""The request bodies of the admin API, as the routes decode them and as `openapi.py` describes them."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any, TypeVar

import msgspec
from quart import request

from gateway import errors
from gateway.aliases.rollout_guards import GuardName

__all__ = ["DrainBody", "NeuronRollbackBody", "PlacementBody", "RollbackBody", "RolloutBody", "decode_body", "flag"]

_Body = TypeVar("_Body")


async def decode_body(kind: type[_Body]) -> _Body:
    """The request's body as `kind`; an empty body is `{}`. Raises MalformedJson, also if a name is there twice."""
    data = await request.get_data(as_text=False) or b"{}"
    try:
        body = msgspec.json.decode(data, type=kind)
        json.loads(data, object_pairs_hook=_without_duplicates)
    except (msgspec.MsgspecError, RecursionError, _DuplicateName) as error:
        reason = "a text has half of a surrogate pair" if _has_lone_surrogate(data) else str(error)
        raise errors.MalformedJson(f"invalid request body: {reason}") from error
    return body


class _DuplicateName(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Raises _DuplicateName: which of two values counts differs between JSON readers (RFC 8259, section 4)."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _DuplicateName(f"the name {name[:40]!r} is there twice in one object")
        found[name] = value
    return found


def _has_lone_surrogate(data: str | bytes) -> bool:
    """Whether `data` is JSON but for half a surrogate pair in a text; msgspec says that such a text is cut off."""
    try:
        json.dumps(json.loads(data), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    except (ValueError, RecursionError):
        return False
    return False


def flag(name: str) -> bool:
    """Whether the current request's URL has this parameter as 1 or true. Raises BadRequest for other values."""
    value = request.args.get(name, "0")
    if value not in {"0", "1", "false", "true"}:
        raise errors.BadRequest(f"{name} must be 1 or 0", param=name)
    return value in {"1", "true"}


# A step beyond these would never end.
_LONGEST_STEP_S = 366 * 24 * 3600
_MOST_REQUESTS = 10**9


class DrainBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a drain; it may be omitted. `move` loads the neuron's models elsewhere first."""

    move: bool = False


class PlacementBody(msgspec.Struct, forbid_unknown_fields=True):
    """A model, by id or alias, and a neuron. Without a neuron the gateway chooses."""

    model: str
    node: str | None = None


class RollbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which alias to restore, None for the whole file, and to which version: a number, or the beginning of a hash."""

    alias: str | None = None
    to: str | None = None


class NeuronRollbackBody(msgspec.Struct, forbid_unknown_fields=True):
    """Which version of the file of the neurons to restore: the beginning of its hash; None for the one before."""

    to: str | None = None


class RolloutBody(msgspec.Struct, forbid_unknown_fields=True):
    """A rollout of an alias to `target`. Steps are percent; `guards` has a tolerance for each guard, None for all.

    `force` allows a target that neither the catalogue nor a neuron has; `from_disk` a file that is not in force.
    """

    target: str
    steps: list[float] = msgspec.field(default_factory=lambda: [5.0, 25.0, 50.0, 100.0])
    every_seconds: float = 600.0
    guards: dict[GuardName, float] | None = None
    min_requests: int | None = None
    force: bool = False
    from_disk: bool = False

    def __post_init__(self) -> None:
        rises = all(one < other for one, other in pairwise(self.steps))
        if not self.steps or not rises or not all(0 < step <= 100 for step in self.steps):
            raise ValueError("steps must rise, and be above 0 and at most 100")
        if not 0 <= self.every_seconds <= _LONGEST_STEP_S:
            raise ValueError(f"every_seconds must be 0 to {_LONGEST_STEP_S} (a year)")
        if any(not 0 <= tolerance < float("inf") for tolerance in (self.guards or {}).values()):
            raise ValueError("a tolerance must be 0 or more")
        if self.min_requests is not None and not 0 <= self.min_requests <= _MOST_REQUESTS:
            raise ValueError(f"min_requests must be 0 to {_MOST_REQUESTS}")
