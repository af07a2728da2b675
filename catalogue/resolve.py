"""Requested name to concrete model id: one exact lookup, never chained. Whether the model exists is not checked here.

One target of several is drawn by weight: at random, or by a key of the request (its conversation or its API key) if the
alias is sticky, so that the same key gets the same target.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from math import inf, log
from typing import TypeAlias

from catalogue.models import Alias, Catalogue, Resolution, Sticky

KeyOf: TypeAlias = Callable[[Sticky], bytes | None]
"""The key of a request for a sticky alias, or None if the request has none.

Called only if needed: finding the beginning of a conversation means reading the body.
"""


def _no_key(_: Sticky) -> None:
    return None


def resolve(
    catalogue: Catalogue, name: str, key_of: KeyOf = _no_key, *, draw: Callable[[], float] = random.random
) -> Resolution:
    """The model that `name` stands for in this snapshot; `name` itself if no alias has exactly that name.

    Args:
        catalogue: The request's snapshot.
        name: As the client wrote it.
        key_of: Called at most once.
        draw: Returns a uniform random number from [0, 1).
    """
    alias = catalogue.aliases.get(name)
    if alias is None:
        return Resolution(name, None)
    if alias.resolution is not None:
        return alias.resolution
    return Resolution(_pick(alias, key_of, draw), name, alias)


def _pick(alias: Alias, key_of: KeyOf, draw: Callable[[], float]) -> str:
    if len(alias.targets) == 1:
        return alias.target
    key = None if alias.sticky == "none" else key_of(alias.sticky)
    return drawn(alias, draw()) if key is None else drawn_by_key(alias, key)


def drawn(alias: Alias, chance: float) -> str:
    """The target whose share of [0, 1) `chance` falls into."""
    left = chance * sum(target.weight for target in alias.targets)
    for target in alias.targets:
        left -= target.weight
        if left < 0:
            return target.model
    return alias.target  # a rounding error at the end of the range


def drawn_by_key(alias: Alias, key: bytes) -> str:
    """The target of this key. It stays the same while the weights do; after a change only the necessary keys move.

    Weighted rendezvous hashing: each target has a time for the key, exponentially distributed with its weight as the
    rate, and the smallest time wins. So a target wins in proportion to its weight. More weight makes a target's times
    smaller and leaves the others as they are, so keys move to it and never between the others. (One hash into cumulated
    weights would also move keys between targets that did not change.)
    """
    best, best_time = alias.target, inf
    for target in alias.targets:
        if target.weight > 0:
            time = -log(_uniform(alias.name, key, target.model)) / target.weight
            if time < best_time:
                best, best_time = target.model, time
    return best


def _uniform(alias: str, key: bytes, model: str) -> float:
    """A pseudo-random number from (0, 1), the same for the same three arguments.

    The alias is part of it, so that a key with the small share of one alias does not get the small share of all.
    """
    digest = hashlib.blake2b(
        b"\0".join((alias.encode(), model.encode(), key)), digest_size=8, person=b"cortex target"
    ).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53
