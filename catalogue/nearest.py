"""The known names that are most similar to one that does not exist, for error messages. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import islice

__all__ = ["did_you_mean", "nearest_names"]

COMPARED_LIMIT = 500  # names; all of them take 0.3 ms, and other requests wait meanwhile
LENGTH_LIMIT = 200  # characters of a name that are compared
SIMILARITY = 0.6  # 0 to 1; "smal" and "small" have 0.86


def nearest_names(name: str, known: Iterable[str], limit: int = 2) -> list[str]:
    """At most `limit` known names, the most similar first. Upper and lower case count as the same letter.

    A name that differs only in case comes first, then one that lacks or has one more prefix (`Qwen3-8B` for
    `Qwen/Qwen3-8B`), then those that are spelt similarly.
    """
    wanted = name[:LENGTH_LIMIT].casefold()
    scores = {each: _similarity(wanted, each[:LENGTH_LIMIT].casefold()) for each in islice(known, COMPARED_LIMIT)}
    similar = [each for each, score in scores.items() if score >= SIMILARITY and each != name]
    return sorted(similar, key=lambda each: (-scores[each], each))[:limit]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message: `; did you mean 'a' or 'b'?`, or nothing if no known name is similar."""
    names = " or ".join(f"'{each}'" for each in nearest_names(name, known))
    return f"; did you mean {names}?" if names else ""


def _similarity(one: str, other: str) -> float:
    """Dice's coefficient of the pairs of letters; 2 for equal names, 1 for those that are equal but for a prefix.

    `difflib` takes a hundred times as long, and clients can send any number of unknown names.
    """
    if one == other:
        return 2.0
    if one.rpartition("/")[2] == other.rpartition("/")[2]:
        return 1.0
    pairs, others = _pairs(one), _pairs(other)
    return 2 * len(pairs & others) / (len(pairs) + len(others))


@lru_cache(maxsize=2 * COMPARED_LIMIT)
def _pairs(word: str) -> frozenset[str]:
    """Each two letters that follow each other; the ends of the word count as letters."""
    return frozenset(map("".join, zip(f" {word}", f"{word} ", strict=True)))
