"""Requested name -> concrete model id. One exact lookup, never chained; whether the model exists is not asked here."""

from __future__ import annotations

from typing import NamedTuple

from catalogue.models import Catalogue


class Resolution(NamedTuple):
    """What a request asked for, said concretely. A tuple because one is made per request."""

    model: str
    alias: str | None


def resolve(catalogue: Catalogue, name: str) -> Resolution:
    """The model that `name` stands for in this snapshot; itself, if no alias has exactly that name."""
    alias = catalogue.aliases.get(name)
    return Resolution(name, None) if alias is None else Resolution(alias.target, name)
