"""What an edit makes of the text of a `models.toml`: one alias says something else, every other byte stays. Pure.

Saving the result is `saving.py`'s part, and whether it is a good catalogue `catalogue.load`'s.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import tomli
import tomlkit
from tomlkit import items
from tomlkit.exceptions import TOMLKitError

from catalogue.load import parse_toml

__all__ = ["CannotEdit", "remove_alias", "restore_alias", "set_alias"]

_BYTE_ORDER_MARK = "\ufeff"
_DEFAULT_SWAP = "warm"
_TARGET_KEYS = ("target", "targets")  # an alias that is a table has one of them


class CannotEdit(Exception):
    """The text is of a shape that cannot be edited without touching more than was asked; the reason is for people."""


def set_alias(data: bytes, name: str, targets: Mapping[str, float], *, swap: str | None = None) -> bytes:
    """The file with the alias standing for these models.

    A plain string stays one while that says enough, and becomes an inline table in the same line when it does not. A
    table keeps its other keys.

    Args:
        data: The file as it is; valid TOML.
        name: The alias; a new one goes after the last of the plain ones.
        targets: Weight by model, in the order they are to be written; not empty.
        swap: "warm" or "cold" to say how this alias changes from now on; None leaves what the file says.

    Raises:
        CannotEdit: Not without touching more.
        FaultyFile: `data` is not TOML.
    """
    text = _Text(data)
    aliases = text.aliases()
    said = aliases.get(name)
    if isinstance(said, MutableMapping) and not _says_only_targets(said, targets, swap):
        _set_targets(said, targets)
        if swap is not None:
            _set_swap(said, swap)
    else:
        _put(aliases, name, _written(targets, swap), text)
    return text.edited(name)


def remove_alias(data: bytes, name: str) -> bytes:
    """The file without the alias; comments around it stay.

    Raises:
        KeyError: There is none of that name.
        CannotEdit, FaultyFile: As for `set_alias`.
    """
    text = _Text(data)
    aliases = text.aliases()
    if name not in aliases:
        raise KeyError(name)
    del aliases[name]
    return text.edited(name)


def restore_alias(data: bytes, name: str, earlier: bytes) -> bytes:
    """The file with the alias as it stood in an earlier one, or without it if it did not stand there.

    Raises:
        CannotEdit, FaultyFile: As for `set_alias`, of either file.
    """
    text, before = _Text(data), _Text(earlier)
    was = before.document.get("aliases", {})
    if name not in was:
        return remove_alias(data, name) if name in text.document.get("aliases", {}) else data
    aliases = text.aliases()
    if isinstance(aliases.get(name), items.AbstractTable) and type(was[name]) is type(aliases[name]):
        _become(aliases[name], was[name])  # in place: what stands around a table moves when it is replaced
    else:
        _put(aliases, name, was[name], text)
    edited = text.edited(name)
    if _aliases_of(edited)[name] != _aliases_of(earlier)[name]:
        raise CannotEdit(f"'{name}' cannot be put back as it stood: its place in the file has changed too much")
    return edited


# The text, and what TOML Kit makes of it...


class _Text:
    """A file taken apart so that it can be put together again byte by byte."""

    def __init__(self, data: bytes) -> None:
        self._before, _ = parse_toml(data, path="models.toml")  # tomli's complaint has a line; TOML Kit's may not
        self._mark = data.decode().startswith(_BYTE_ORDER_MARK)
        self.newline = "\r\n" if "\r\n" in self._before else "\n"
        try:
            self.document = tomlkit.parse(self._before)
            if tomlkit.dumps(self.document) != self._before:
                raise CannotEdit("TOML Kit cannot keep this file's layout; edit it by hand")
        except (TOMLKitError, RecursionError) as error:
            raise CannotEdit(f"TOML Kit cannot read this file: {error}; edit it by hand") from error

    def aliases(self) -> MutableMapping[str, Any]:
        """The aliases, to change in place; made at the end of the file if there are none yet."""
        if "aliases" not in self.document:
            self.document["aliases"] = tomlkit.table()
        aliases: MutableMapping[str, Any] = self.document["aliases"]
        if not isinstance(aliases, MutableMapping):
            raise CannotEdit("`aliases` is not a table")
        return aliases

    def edited(self, name: str) -> bytes:
        """The text as it is now. What the edit was not about must mean what it meant."""
        text = tomlkit.dumps(self.document)
        if _without(text, name) != _without(self._before, name):
            raise CannotEdit(f"'{name}' cannot be changed without touching more of this file; edit it by hand")
        return ((_BYTE_ORDER_MARK if self._mark else "") + text).encode()


def _without(text: str, name: str) -> dict[str, Any]:
    """What the text says, the alias apart; a table of no other alias is as good as none."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:  # TOML Kit wrote something that it should not have
        raise CannotEdit(f"'{name}' cannot be changed where it stands; edit the file by hand") from error
    aliases = document.pop("aliases", {})
    return document | {"aliases": {key: value for key, value in aliases.items() if key != name}}


def _aliases_of(data: bytes) -> dict[str, Any]:
    _, document = parse_toml(data, path="models.toml")
    aliases: dict[str, Any] = document.get("aliases", {})
    return aliases


# An alias, as it is written...


def _says_only_targets(said: MutableMapping[str, Any], targets: Mapping[str, float], swap: str | None) -> bool:
    """Whether a table in braces is about to say no more than a plain string can."""
    if len(targets) > 1 or not isinstance(said, items.InlineTable):
        return False
    return swap in {None, _DEFAULT_SWAP} and said.keys() <= {*_TARGET_KEYS} | ({"swap"} if swap else set())


def _written(targets: Mapping[str, float], swap: str | None) -> Any:
    """The shortest way to say it."""
    if swap in {None, _DEFAULT_SWAP}:
        return (
            _string(next(iter(targets))) if len(targets) == 1 else tomlkit.value(f"{{ targets = {_shares(targets)} }}")
        )
    said = _string(next(iter(targets))).as_string() if len(targets) == 1 else _shares(targets)
    return tomlkit.value(f'{{ target{"s" if len(targets) > 1 else ""} = {said}, swap = "{swap}" }}')


def _shares(targets: Mapping[str, float]) -> str:
    """As a person would write them, with spaces inside the braces, which TOML Kit leaves out of its own."""
    shares = (f"{{ model = {_string(model).as_string()}, weight = {weight:g} }}" for model, weight in targets.items())
    return f"[{', '.join(shares)}]"


def _string(text: str) -> items.String:
    return tomlkit.string(text)


def _set_targets(table: MutableMapping[str, Any], targets: Mapping[str, float]) -> None:
    """In the place of the targets that the table has, under whichever of the two keys."""
    known = _target_key(table)
    if len(targets) == 1:
        _replace(table, known, "target", _string(next(iter(targets))))
    else:
        _replace(table, known, "targets", tomlkit.value(_shares(targets)))


def _become(table: MutableMapping[str, Any], was: Mapping[str, Any]) -> None:
    for key in [key for key in table if key not in was and key not in _TARGET_KEYS]:
        del table[key]
    for key, value in was.items():
        if key in _TARGET_KEYS:
            _replace(table, _target_key(table), key, value)
        elif table.get(key) != value:
            table[key] = value


def _target_key(table: Mapping[str, Any]) -> str | None:
    return next((key for key in _TARGET_KEYS if key in table), None)


def _set_swap(table: MutableMapping[str, Any], swap: str) -> None:
    """The default is not written, unless another was."""
    if swap != _DEFAULT_SWAP or "swap" in table:
        table["swap"] = swap


def _replace(table: MutableMapping[str, Any], known: str | None, key: str, value: items.Item) -> None:
    if known is None or known == key:
        table[key] = value
    elif isinstance(table, items.AbstractTable):
        was = next(entry for entry, _ in table.value.body if entry is not None and entry.key == known)
        # In place, spaces around the = included; in public one can only remove and append.
        renamed = items.SingleKey(key, sep=was.sep, original=was.as_string().replace(known, key, 1))
        table.value._replace(was, renamed, value)
    else:
        del table[known]
        table[key] = value


def _put(aliases: MutableMapping[str, Any], name: str, value: Any, text: _Text) -> None:
    """Where it stands, else below the last alias of one line: not below a comment that speaks of what comes next."""
    if name in aliases or not isinstance(aliases, items.Table):
        aliases[name] = value
        return
    lines = [key for key, entry in aliases.value.body if key is not None and not isinstance(entry, items.Table)]
    item = tomlkit.item(value)
    if lines and not isinstance(item, items.Table):
        above = aliases[lines[-1].key]
        item.trivia.indent = above.trivia.indent
        aliases.value._insert_after(lines[-1], name, item)  # noqa: SLF001 - in public one can only append
    else:
        aliases[name] = item
    item.trivia.trail = text.newline
