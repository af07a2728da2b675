"""The request bodies of the admin API, as the routes decode them and as `openapi.py` describes them."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeVar

import msgspec
from quart import request

from gateway import errors
from gateway.aliases.rollout_guards import GuardName

__all__ = ["DrainBody", "PlacementBody", "RollbackBody", "RolloutBody", "decode_body"]

_Body = TypeVar("_Body")


async def decode_body(kind: type[_Body]) -> _Body:
    """The request's body as `kind`; an empty body is `{}`. Raises MalformedJson."""
    data = await request.get_data(as_text=False)
    try:
        return msgspec.json.decode(data or b"{}", type=kind)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise errors.MalformedJson(f"invalid request body: {error}") from error


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
