"""`Route`: how a request reaches a replica."""

from __future__ import annotations

import msgspec

from gateway.config.engine_traits import PLAIN, Backend
from gateway.fleet.engine_access import EngineAccess

__all__ = ["Route"]


class Route(msgspec.Struct, frozen=True):
    """Send the request to this node now.

    `model_id` is the node's name for the model; the body must have it, unless `access` maps it to another. `access` is
    None for plain requests to a neuron. `backend` is what the engine supports beyond plain chat completions.
    """

    node: str
    model_id: str
    url: str
    access: EngineAccess | None = None
    backend: Backend = PLAIN
