"""The request bodies of the admin API, as the routes decode them and as `openapi.py` describes them."""

from __future__ import annotations

import msgspec

__all__ = ["DrainBody", "PlacementBody"]


class DrainBody(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a drain; it may be omitted. `move` loads the neuron's models elsewhere first."""

    move: bool = False


class PlacementBody(msgspec.Struct, forbid_unknown_fields=True):
    """A model, by id or alias, and a neuron. Without a neuron the gateway chooses."""

    model: str
    node: str | None = None
