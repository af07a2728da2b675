"""Editing one alias in the text of a `models.toml`; every other byte stays. Pure.

Writing the result to disk is done by `locked_edit.py`, and checking that it is a valid catalogue by `catalogue.load`.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any

import tomli
import tomlkit
from tomlkit import items
from tomlkit.exceptions import TOMLKitError

from catalogue.toml.parse import parse_toml

__all__ = ["CannotEdit", "alias_keys", "put_alias", "remove_alias", "restore_alias", "set_alias"]

_BYTE_ORDER_MARK = "\ufeff"
_DEFAULT_SWAP = "warm"
_TARGET_KEYS = ("target", "targets")  # an alias that is a table has one of them


class CannotEdit(Exception):
    """The edit would change more of the file than the alias; the text says why, for operators."""


def set_alias(data: bytes, name: str, targets: Mapping[str, float], *, swap: str | None = None) -> bytes:
    """The file with the alias set to these targets.

    A plain string stays a string if it can express the targets; otherwise it becomes an inline table on the same line.
    A table keeps its other keys.

    Args:
        data: The current file; valid TOML.
        name: The alias. A new one is inserted below the last alias that is on one line.
        targets: Weight by model, in the order to write them; not empty.
        swap: "warm" or "cold"; None leaves the key as it is.

    Raises:
        CannotEdit: The edit would change more than the alias.
        FaultyFile: `data` is not TOML.
    """
    text = _Text(data)
    aliases = text.aliases()
    entry = aliases.get(name)
    if isinstance(entry, MutableMapping) and not _fits_a_string(entry, targets, swap):
        _set_targets(entry, targets)
        if swap is not None:
            _set_swap(entry, swap)
    else:
        _put(aliases, name, _shortest_value(targets, swap), text)
    return text.edited(name)


def put_alias(data: bytes, name: str, keys: Mapping[str, Any]) -> bytes:
    """The file with the alias replaced by these keys, as in its table; only a `target` becomes a plain string.

    Raises:
        CannotEdit, FaultyFile: As for `set_alias`.
    """
    text = _Text(data)
    aliases = text.aliases()
    is_plain = keys.keys() == {"target"} and isinstance(keys["target"], str)
    try:
        value: Any = _string(keys["target"]) if is_plain else tomlkit.value(_inline(keys))
    except (RecursionError, TOMLKitError) as error:
        raise CannotEdit(f"'{name}' has a value that TOML cannot express, or that is nested too deeply") from error
    if isinstance(aliases.get(name), items.AbstractTable) and not is_plain:
        _make_equal(aliases[name], value)  # in place: replacing a table would move the text around it
    else:
        _put(aliases, name, value, text)
    return text.edited(name)


def _inline(value: object) -> str:
    """TOML on one line; null is left out, as TOML has none."""
    match value:
        case Mapping():
            pairs = (f"{_key(key)} = {_inline(each)}" for key, each in value.items() if each is not None)
            return f"{{ {', '.join(pairs)} }}"
        case list() | tuple():
            return f"[{', '.join(_inline(each) for each in value)}]"
        case str():
            return _string(value).as_string()
        case None:
            raise CannotEdit("an array must not contain null, which TOML does not have")
        case _:
            return tomlkit.item(value).as_string()


def _key(key: str) -> str:
    return tomlkit.key(key).as_string()


def alias_keys(data: bytes, name: str) -> dict[str, Any] | None:
    """What the file says of the alias, as the keys of a table; None if it has no such alias. Raises FaultyFile."""
    aliases = _aliases_of(data)
    if name not in aliases:
        return None
    return {"target": aliases[name]} if isinstance(aliases[name], str) else dict(aliases[name])


def remove_alias(data: bytes, name: str) -> bytes:
    """The file without the alias; comments around it stay.

    Raises:
        KeyError: There is no alias of that name.
        CannotEdit, FaultyFile: As for `set_alias`.
    """
    text = _Text(data)
    aliases = text.aliases()
    if name not in aliases:
        raise KeyError(name)
    del aliases[name]
    return text.edited(name)


def restore_alias(data: bytes, name: str, earlier: bytes) -> bytes:
    """The file with the alias as it was in an earlier file; without it, if the earlier file does not have it.

    Raises:
        CannotEdit, FaultyFile: As for `set_alias`, of either file.
    """
    text, earlier_text = _Text(data), _Text(earlier)
    old_aliases = earlier_text.document.get("aliases", {})
    if name not in old_aliases:
        return remove_alias(data, name) if name in text.document.get("aliases", {}) else data
    aliases = text.aliases()
    if isinstance(aliases.get(name), items.AbstractTable) and type(old_aliases[name]) is type(aliases[name]):
        _make_equal(aliases[name], old_aliases[name])  # in place: replacing a table would move the text around it
    else:
        _put(aliases, name, old_aliases[name], text)
    edited = text.edited(name)
    if _aliases_of(edited)[name] != _aliases_of(earlier)[name]:
        raise CannotEdit(f"'{name}' cannot be restored: its place in the file has changed too much; edit it by hand")
    return edited


# The text, and what TOML Kit makes of it...


class _Text:
    """A parsed file that can be written back byte by byte."""

    def __init__(self, data: bytes) -> None:
        self._before, _ = parse_toml(data, path="models.toml")  # tomli's error has a line; TOML Kit's may have none
        self._has_byte_order_mark = data.decode().startswith(_BYTE_ORDER_MARK)
        self.newline = "\r\n" if "\r\n" in self._before else "\n"
        try:
            self.document = tomlkit.parse(self._before)
            if tomlkit.dumps(self.document) != self._before:
                raise CannotEdit("TOML Kit cannot keep this file's layout; edit it by hand")
        except (TOMLKitError, RecursionError) as error:
            raise CannotEdit(f"TOML Kit cannot read this file: {error}; edit it by hand") from error

    def aliases(self) -> MutableMapping[str, Any]:
        """The `aliases` table, to change in place; created at the end of the file if it is missing."""
        if "aliases" not in self.document:
            self.document["aliases"] = tomlkit.table()
        aliases: MutableMapping[str, Any] = self.document["aliases"]
        if not isinstance(aliases, MutableMapping):
            raise CannotEdit("`aliases` is not a table")
        return aliases

    def edited(self, name: str) -> bytes:
        """The edited file, checked: everything but the alias `name` has the same meaning as before."""
        text = tomlkit.dumps(self.document)
        if _without(text, name) != _without(self._before, name):
            raise CannotEdit(f"'{name}' cannot be changed without changing more of this file; edit it by hand")
        return ((_BYTE_ORDER_MARK if self._has_byte_order_mark else "") + text).encode()


def _without(text: str, name: str) -> dict[str, Any]:
    """The document without this alias; an empty `aliases` table equals a missing one."""
    try:
        document = tomli.loads(text)
    except tomli.TOMLDecodeError as error:  # TOML Kit wrote invalid TOML
        raise CannotEdit(f"'{name}' cannot be changed in its place in this file; edit it by hand") from error
    aliases = document.pop("aliases", {})
    return document | {"aliases": {key: value for key, value in aliases.items() if key != name}}


def _aliases_of(data: bytes) -> dict[str, Any]:
    _, document = parse_toml(data, path="models.toml")
    aliases: dict[str, Any] = document.get("aliases", {})
    return aliases


# One alias...


def _fits_a_string(entry: MutableMapping[str, Any], targets: Mapping[str, float], swap: str | None) -> bool:
    """Whether an inline table, after the edit, expresses no more than a plain string can."""
    if len(targets) > 1 or not isinstance(entry, items.InlineTable):
        return False
    return swap in {None, _DEFAULT_SWAP} and entry.keys() <= {*_TARGET_KEYS} | ({"swap"} if swap else set())


def _shortest_value(targets: Mapping[str, float], swap: str | None) -> Any:
    """A string, or an inline table where a string is not enough."""
    if swap in {None, _DEFAULT_SWAP}:
        return (
            _string(next(iter(targets)))
            if len(targets) == 1
            else tomlkit.value(f"{{ targets = {_target_list(targets)} }}")
        )
    value = _string(next(iter(targets))).as_string() if len(targets) == 1 else _target_list(targets)
    return tomlkit.value(f'{{ target{"s" if len(targets) > 1 else ""} = {value}, swap = "{swap}" }}')


def _target_list(targets: Mapping[str, float]) -> str:
    """An array of inline tables, with the spaces inside the braces that TOML Kit would leave out."""
    entries = (f"{{ model = {_string(model).as_string()}, weight = {weight:g} }}" for model, weight in targets.items())
    return f"[{', '.join(entries)}]"


def _string(text: str) -> items.String:
    return tomlkit.string(text)


def _set_targets(table: MutableMapping[str, Any], targets: Mapping[str, float]) -> None:
    """Replace the table's targets in their place, whichever of the two keys they have."""
    key = _target_key(table)
    if len(targets) == 1:
        _replace(table, key, "target", _string(next(iter(targets))))
    else:
        _replace(table, key, "targets", tomlkit.value(_target_list(targets)))


def _make_equal(table: MutableMapping[str, Any], earlier: Mapping[str, Any]) -> None:
    for key in [key for key in table if key not in earlier and key not in _TARGET_KEYS]:
        del table[key]
    for key, value in earlier.items():
        if key in _TARGET_KEYS:
            _replace(table, _target_key(table), key, value)
        elif table.get(key) != value:
            table[key] = value


def _target_key(table: Mapping[str, Any]) -> str | None:
    return next((key for key in _TARGET_KEYS if key in table), None)


def _set_swap(table: MutableMapping[str, Any], swap: str) -> None:
    """The default is written only where the key exists already."""
    if swap != _DEFAULT_SWAP or "swap" in table:
        table["swap"] = swap


def _replace(table: MutableMapping[str, Any], old_key: str | None, key: str, value: items.Item) -> None:
    if old_key is None or old_key == key:
        table[key] = value
    elif isinstance(table, items.AbstractTable):
        old = next(entry for entry, _ in table.value.body if entry is not None and entry.key == old_key)
        # Rename in place, spaces around the = included; TOML Kit's public API can only remove and append.
        renamed = items.SingleKey(key, sep=old.sep, original=old.as_string().replace(old_key, key, 1))
        table.value._replace(old, renamed, value)
    else:
        del table[old_key]
        table[key] = value


def _put(aliases: MutableMapping[str, Any], name: str, value: Any, text: _Text) -> None:
    """Set an alias in its place; insert a new one below the last alias that is on one line.

    At the end of the table it could come after a comment that belongs to the next table.
    """
    if name in aliases or not isinstance(aliases, items.Table):
        aliases[name] = value
        return
    one_line = [key for key, entry in aliases.value.body if key is not None and not isinstance(entry, items.Table)]
    item = tomlkit.item(value)
    if one_line and not isinstance(item, items.Table):
        above = aliases[one_line[-1].key]
        item.trivia.indent = above.trivia.indent
        aliases.value._insert_after(one_line[-1], name, item)  # noqa: SLF001 - the public API can only append
    else:
        aliases[name] = item
    item.trivia.trail = text.newline
