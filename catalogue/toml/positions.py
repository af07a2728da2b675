"""The line of each key of a TOML document. Only positions: tomli decides what is valid and what a value means.

tomli reports no lines of keys, and a fault needs one. This scanner reads the same text a second time and looks at keys
and brackets only. Give it text that tomli has accepted; for any other text it does not raise, but it knows fewer lines.
Why it is our own: docs/decisions/0013-position-index.md.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import tomli

KeyPath = tuple[str | int, ...]
"""From the root of the document to a value: table keys as strings, array positions as 0-based integers."""

# All quantifiers are possessive (`*+`), so that a string of megabytes takes one linear pass without backtracking.
_BASIC = r'"(?:[^"\\\n]++|\\.)*+"'
_LITERAL = r"'[^'\n]*+'"
# Three to five quotes end a multi-line string: up to two of them are its last characters.
_MULTILINE_BASIC = r'"""(?:[^"\\]++|\\.|"{1,2}(?!"))*+"{3,5}'
_MULTILINE_LITERAL = r"'''(?:[^']++|'{1,2}(?!'))*+'{3,5}"
_SPACE = re.compile(r"[ \t]*+")
_BETWEEN_STATEMENTS = re.compile(r"(?:[ \t\r\n]|#[^\n]*+)*+")
_BETWEEN_ELEMENTS = re.compile(r"(?:[ \t\r\n,]|#[^\n]*+)*+")
_KEY_PART = re.compile(rf"{_BASIC}|{_LITERAL}|[A-Za-z0-9_-]++", re.DOTALL)
# The last alternative is a number, a boolean or a date; a date may contain a space.
_SCALAR = re.compile(rf"{_MULTILINE_BASIC}|{_MULTILINE_LITERAL}|{_BASIC}|{_LITERAL}|[^,\]}}#\r\n]++", re.DOTALL)


def scan(text: str) -> Positions:
    """The line of every key, array element and table in `text`, which tomli has accepted."""
    scanner = _Scanner(text)
    with contextlib.suppress(_LostError):  # not TOML after all: the lines found so far are still right
        scanner.scan_document()
    return Positions(scanner.root)


class Positions:
    """Lines (1-based) by key path."""

    def __init__(self, root: _Node | None = None) -> None:
        self._root = root or _Node(line=None)

    def line(self, path: KeyPath) -> int | None:
        """The line of `path`, or of the innermost table around it that has a line.

        So the line of a *missing* key is that of its table's header, which is where it has to be added.
        """
        node, line = self._root, None
        for part in path:
            child = node.children.get(part)
            if child is None:
                break
            node, line = child, child.line
        return line

    def paths(self) -> Iterator[KeyPath]:
        """Every path that has a line of its own: keys, tables and array elements."""
        pending: list[tuple[KeyPath, _Node]] = [((), self._root)]
        while pending:
            path, node = pending.pop()
            for part, child in node.children.items():
                yield (*path, part)
                pending.append(((*path, part), child))


@dataclass(slots=True)
class _Node:
    """A value of the document.

    A tree and not a map of whole paths: a key with n parts takes O(n), not O(n^2).
    """

    line: int | None
    children: dict[str | int, _Node] = field(default_factory=dict)
    is_table_array: bool = False

    def child(self, part: str | int, line: int) -> _Node:
        """The child with this name. A new one gets `line`; an existing one keeps its own."""
        return self.children.setdefault(part, _Node(line))

    def entered(self) -> _Node:
        """The node that keys below this name belong to: the newest element, if it is an array of tables."""
        return self.children[len(self.children) - 1] if self.is_table_array else self


class _LostError(Exception):
    """The text does not follow the grammar."""


class _Scanner:
    def __init__(self, text: str) -> None:
        self.root = _Node(line=None)
        self._text = text
        self._at = 0
        self._line = 1
        self._line_known_at = 0

    def scan_document(self) -> None:
        table = self.root
        while self._skip(_BETWEEN_STATEMENTS) < len(self._text):
            if self._peek() == "[":
                table = self._header()
            else:
                self._fill(self._assignment_target(table))

    # Statements.

    def _header(self) -> _Node:
        line, opening = self._current_line(), "[[" if self._text.startswith("[[", self._at) else "["
        self._at += len(opening)
        *parents, name = self._key()
        self._at += len(opening)  # the closing brackets; a comment may follow, which the next skip eats
        node = self.root
        for part in parents:
            node = node.child(part, line).entered()
        node = node.child(name, line)
        if opening == "[":
            node.line = line  # also if a [table.below] came first
            return node
        node.is_table_array = True
        return node.child(len(node.children), line)

    def _assignment_target(self, table: _Node) -> _Node:
        line = self._current_line()
        for part in self._key():
            table = table.child(part, line)
        if self._peek() != "=":
            raise _LostError
        self._at += 1
        return table

    def _key(self) -> list[str]:
        parts = []
        while True:
            self._skip(_SPACE)
            parts.append(_unquote(self._take(_KEY_PART)))
            self._skip(_SPACE)
            if self._peek() != ".":
                return parts
            self._at += 1

    # Values. A stack instead of recursion: the caller may have used most of Python's recursion limit.

    def _fill(self, target: _Node) -> None:
        containers: list[tuple[_Node, str]] = []
        while True:
            self._skip(_BETWEEN_STATEMENTS)
            if self._peek() in "[{":
                containers.append((target, {"[": "]", "{": "}"}[self._peek()]))
                self._at += 1
            else:
                self._take(_SCALAR)
            following = self._next_target(containers)
            if following is None:
                return
            target = following

    def _next_target(self, containers: list[tuple[_Node, str]]) -> _Node | None:
        """Close the containers that end here. Returns the next node to fill, or None after the outermost container."""
        while containers:
            self._skip(_BETWEEN_ELEMENTS)
            container, closing = containers[-1]
            if self._peek() == closing:
                self._at += 1
                containers.pop()
            elif closing == "]":
                return container.child(len(container.children), self._current_line())
            else:
                return self._assignment_target(container)
        return None

    # Characters.

    def _peek(self) -> str:
        if self._at >= len(self._text):
            raise _LostError
        return self._text[self._at]

    def _skip(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self._text, self._at)
        if found is not None:
            self._at = found.end()
        return self._at

    def _take(self, pattern: re.Pattern[str]) -> str:
        found = pattern.match(self._text, self._at)
        if found is None:
            raise _LostError
        self._at = found.end()
        return found.group()

    def _current_line(self) -> int:
        self._line += self._text.count("\n", self._line_known_at, self._at)
        self._line_known_at = self._at
        return self._line


def _unquote(part: str) -> str:
    if part[0] == "'":
        return part[1:-1]
    if part[0] != '"':
        return part
    if "\\" not in part:
        return part[1:-1]
    try:
        return next(iter(tomli.loads(f"{part}=0")))  # tomli decodes escapes
    except tomli.TOMLDecodeError as error:
        raise _LostError from error
