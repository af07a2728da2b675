"""What the admin API takes: the bodies of its requests, as they are read and as its document tells. Values only."""

from __future__ import annotations

import msgspec

__all__ = ["Drain", "Placed"]


class Drain(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a drain; it may be left out."""

    move: bool = False


class Placed(msgspec.Struct, forbid_unknown_fields=True):
    """A model, by id or alias, and a neuron; without one, any that will do."""

    model: str
    node: str | None = None
