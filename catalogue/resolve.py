"""Requested name -> concrete model id. One exact lookup, never chained; whether the model exists is not asked here.

Of an alias with several targets one is drawn by weight: by chance, or, if the alias is sticky and the request has a
key (its conversation, its API key), by that key, so that the same key gets the same target.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from math import inf, log
from typing import NamedTuple, TypeAlias

from catalogue.models import Alias, Catalogue, Sticky

KeyOf: TypeAlias = Callable[[Sticky], bytes | None]
"""What a request is told apart by, for an alias that is sticky in this way; None if it has no such thing.

Asked only when it matters: finding a conversation's beginning means reading the body.
"""


class Resolution(NamedTuple):
    """What a request asked for, said concretely. A tuple because one is made per request.

    `policy` is the alias itself, if it says more than which model it stands for.
    """

    model: str
    alias: str | None
    policy: Alias | None = None


def _nothing(_: Sticky) -> None:
    return None


def resolve(
    catalogue: Catalogue, name: str, key_of: KeyOf = _nothing, *, draw: Callable[[], float] = random.random
) -> Resolution:
    """The model that `name` stands for in this snapshot; itself, if no alias has exactly that name.

    Args:
        catalogue: The request's snapshot.
        name: As the client wrote it.
        key_of: Asked at most once.
        draw: A number from [0, 1), each as likely as any other.
    """
    alias = catalogue.aliases.get(name)
    if alias is None:
        return Resolution(name, None)
    if alias.is_plain:
        return Resolution(alias.target, name)
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
    return alias.target  # rounding, at the very end of the range


def drawn_by_key(alias: Alias, key: bytes) -> str:
    """The target this key always gets while the weights stay; when they change, no key moves that need not.

    Weighted rendezvous hashing: every target runs a race of its own for the key, in a time that is exponentially
    distributed with its weight as the rate, and the first one home has it. A target wins in proportion to its weight;
    and giving one more weight makes it faster and nobody else slower, so keys move to it and never between others.
    (One hash into cumulated weights would also shift the boundaries between targets that did not change.)
    """
    best, best_time = alias.target, inf
    for target in alias.targets:
        if target.weight > 0:
            time = -log(_uniform(alias.name, key, target.model)) / target.weight
            if time < best_time:
                best, best_time = target.model, time
    return best


def _uniform(alias: str, key: bytes, model: str) -> float:
    """A number from (0, 1), as if drawn by chance, but always the same for the same three.

    With the alias in it, so that who gets the small share of one does not get it of all.
    """
    digest = hashlib.blake2b(
        b"\0".join((alias.encode(), model.encode(), key)), digest_size=8, person=b"cortex target"
    ).digest()
    return ((int.from_bytes(digest, "big") >> 11) + 0.5) / 2**53
