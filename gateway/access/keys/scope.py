"""Scopes: globs over the names that clients ask for. `*` is any text, also with slashes; `?` is one character.

All other characters stand for themselves, brackets too: names of models contain them. Case matters. Matching takes time
in proportion to the length of the name, whatever the glob: a client chooses the name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

__all__ = ["EVERYTHING", "allows", "contains"]

EVERYTHING = ("*",)
_REMEMBERED_CHARACTERS = 200  # of a name: a client chooses it, and so how much memory it takes


def allows(globs: tuple[str, ...], name: str) -> bool:
    """Whether one of the globs matches the whole name."""
    if globs == EVERYTHING:
        return True
    return _allows_remembered(globs, name) if len(name) <= _REMEMBERED_CHARACTERS else _allows(globs, name)


def _allows(globs: tuple[str, ...], name: str) -> bool:
    return any(_matches(glob, name) for glob in globs)


_allows_remembered = lru_cache(maxsize=4096)(_allows)  # about 2 MiB at most; matching takes 1 us and more per glob


def contains(globs: tuple[str, ...], inner: Iterable[str]) -> bool:
    """Whether every name that an inner glob matches is matched by the globs as well.

    May be False where only several globs together contain an inner one.
    """
    return all(any(_matches(glob, other, literally=True) for glob in globs) for other in inner)


def _matches(glob: str, name: str, *, literally: bool = False) -> bool:
    first, last, middle = _compiled(glob, literally)
    head = first.match(name)
    if head is None:
        return False
    if last is None:  # without `*`
        return head.end() == len(name)
    position = head.end()
    for part in middle:
        found = part.search(name, position)
        if found is None:
            return False
        position = found.end()
    tail = last.search(name, position)
    return tail is not None


@lru_cache(maxsize=1024)
def _compiled(
    glob: str, literally: bool
) -> tuple[re.Pattern[str], re.Pattern[str] | None, tuple[re.Pattern[str], ...]]:
    """The parts between the stars: the first, the last (None without a star), those between them.

    Each part matches a fixed number of characters, so no search backtracks. With `literally` the name is a glob itself,
    and `?` does not stand for its `*`.
    """
    one = "[^*]" if literally else "."
    parts = ["".join(one if char == "?" else re.escape(char) for char in part) for part in glob.split("*")]
    first, *others = parts
    if not others:
        return re.compile(first, re.DOTALL), None, ()
    *middle, last = others
    return (
        re.compile(first, re.DOTALL),
        re.compile(f"(?:{last})\\Z", re.DOTALL),
        tuple(re.compile(part, re.DOTALL) for part in middle if part),
    )
