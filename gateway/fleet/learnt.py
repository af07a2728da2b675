"""What a gateway learns about models on neurons that no poll tells: handed to the process that replaces it."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
import trio

from gateway.fleet.state import Fleet

__all__ = ["LearntModel", "learnt_models", "restore_learnt"]


class LearntModel(msgspec.Struct, frozen=True):
    """What was learnt about one model on one neuron. Ages, because clocks differ between processes.

    Attributes:
        node, model: Names.
        idle_s: Seconds since its last use; None if this gateway has not used it. Evictions go by it.
        resident_s: Seconds since it was first seen loaded; None if it is not.
        proven: It has answered a request since its load, so that an alias can move to it at once.
    """

    node: str
    model: str
    idle_s: float | None
    resident_s: float | None
    proven: bool


def learnt_models(fleet: Fleet) -> list[LearntModel]:
    """What is known now."""
    now = trio.current_time()
    return [
        LearntModel(
            node.name,
            model.id,
            None if model.last_used is None else now - model.last_used,
            None if model.resident_since is None else now - model.resident_since,
            model.proven,
        )
        for node in fleet.nodes.values()
        for model in node.models.values()
    ]


def restore_learnt(fleet: Fleet, learnt: Iterable[LearntModel]) -> None:
    """Note what another process has learnt about the models that are still there. Synchronous."""
    now = trio.current_time()
    for known in learnt:
        node = fleet.nodes.get(known.node)
        model = None if node is None else node.models.get(known.model)
        if model is None:
            continue
        if known.idle_s is not None:
            model.last_used = max(model.last_used or -float("inf"), now - known.idle_s)
        if known.resident_s is not None and model.resident_since is not None:
            model.resident_since = min(model.resident_since, now - known.resident_s)
            model.proven = model.proven or known.proven
