"""Bytes to a parsed TOML document. A file that is not TOML has exactly one fault: nothing after it can be trusted."""

from __future__ import annotations

import re
from typing import Any

import tomli

from catalogue.toml.faults import Fault, FaultyFile

__all__ = ["is_blank", "parse_toml"]

_BYTE_ORDER_MARK = "\ufeff"


def parse_toml(data: bytes, *, path: str) -> tuple[str, dict[str, Any]]:
    """The text and the document in `data`, which is UTF-8, with or without a byte order mark.

    Raises:
        FaultyFile: With one fault: the line where the data stops being UTF-8 or TOML. No other exception is raised.
    """
    try:
        text = data.decode().removeprefix(_BYTE_ORDER_MARK)
        return text, tomli.loads(text)
    except UnicodeDecodeError as error:
        fault = Fault(path, data.count(b"\n", 0, error.start) + 1, None, "not UTF-8", "save the file as UTF-8")
    except tomli.TOMLDecodeError as error:
        fault = Fault(path, error.lineno, None, f"not TOML: {_in_plain_words(error.msg)}", _syntax_hint(error))
    except RecursionError as error:  # tomli limits the nesting and the number of parts of a key
        fault = Fault(path, None, None, f"not acceptable TOML: {error}")
    except ValueError:  # Python limits the digits of a number; its message suggests changes to Python
        fault = Fault(path, None, None, "not acceptable TOML: a number has too many digits")
    raise FaultyFile((fault,))


def is_blank(data: bytes) -> bool:
    """Whether the file is empty or has comments only, as a truncated or half-written file has."""
    lines = data.removeprefix(_BYTE_ORDER_MARK.encode()).splitlines()
    return all(not line.strip() or line.lstrip().startswith(b"#") for line in lines)


def _in_plain_words(message: str) -> str:
    """A message of tomli without Python's notation: it writes the key `a.b` as `('a', 'b')`."""
    found = re.fullmatch(r"Cannot declare \((.*?),?\) twice", message)
    if found is None:
        return message
    return f"{'.'.join(part.strip().strip(chr(39)) for part in found[1].split(','))} is defined twice"


# Part of a message from tomli -> the most likely correction.
_SYNTAX_HINTS = {
    "Illegal character '\\n'": "a string must end on the line where it begins: close its quotes",
    "Unterminated string": "close the quotes of the string",
    "Unescaped '\\' in a string": "write it in 'single quotes', where \\ has no special meaning",
    "Invalid value": "write text in quotes, and true and false in lower case",
    "after a statement": "only a # comment may follow a value on its line",
}
_CURLY_QUOTES = frozenset("\u201c\u201d\u201e\u2018\u2019")


def _syntax_hint(error: tomli.TOMLDecodeError) -> str | None:
    if _CURLY_QUOTES & set(error.doc[error.pos : error.pos + 1]):
        return "use straight quotes: \" or '"
    if "Expected '=' after a key" in error.msg:
        return _missing_equals_hint(error.doc[error.pos : error.pos + 2])
    if "Cannot overwrite a value" in error.msg or "Cannot declare" in error.msg:
        if error.doc.split("\n")[error.lineno - 1].lstrip().startswith("["):
            return "this table is already defined; only an array of tables, in [[double brackets]], can repeat"
        return "this key is already set; keep one of the two"
    return next((hint for words, hint in _SYNTAX_HINTS.items() if words in error.msg), None)


def _missing_equals_hint(found: str) -> str:
    """The hint for what follows the key in place of `=`: `a: 1` is YAML, `qwen3:8b` is a name without quotes."""
    if not found or found[0] in "\r\n" or found == ":" or (found[0] == ":" and found[1].isspace()):
        return "write `key = value`"
    return "put quotes around a name that has characters other than letters, digits, - and _"
