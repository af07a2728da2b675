"""A fault in a file: where it is, what is wrong, and what to do about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from catalogue.toml.positions import KeyPath

__all__ = ["Fault", "FaultyFile", "dotted", "in_file_order"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong with a file, or a warning about it.

    Args:
        path: The file as the operator named it, or the name of an environment variable.
        line: 1-based; None if the fault has no line (the file is missing or cannot be read, or this is a variable).
        key: Dotted (`models[2].min_devices`, `aliases."helexa/small"`); None if the fault is about the whole file.
        message: What is wrong.
        hint: How to correct it, or None.
    """

    path: str
    line: int | None
    key: str | None
    message: str
    hint: str | None = None

    def __str__(self) -> str:
        place = self.path if self.line is None else f"{self.path}:{self.line}"
        what = self.message if self.key is None else f"{self.key}: {self.message}"
        return f"{place}: {what}" + (f"; {self.hint}" if self.hint else "")

    def as_json(self, *, with_path: bool = True) -> dict[str, Any]:
        """The fault as JSON: `path` (unless the reader knows the file), `line`, `key`, `message`, `hint`."""
        path = {"path": self.path} if with_path else {}
        return path | {"line": self.line, "key": self.key, "message": self.message, "hint": self.hint}


class FaultyFile(Exception):
    """A file that was refused, with all its faults. Nothing from the file takes effect."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


def in_file_order(faults: Iterable[Fault]) -> tuple[Fault, ...]:
    """Sorted by line. Faults without a line come first."""
    return tuple(sorted(faults, key=lambda fault: fault.line or 0))


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def dotted(key: KeyPath) -> str:
    """A key path as in TOML: `models[2].min_devices`, `aliases."helexa/small"`."""
    written = ""
    for part in key:
        if isinstance(part, int):
            written += f"[{part}]"
        else:
            quoted = part if _BARE_KEY.fullmatch(part) else json.dumps(part, ensure_ascii=False)
            written += f".{quoted}" if written else quoted
    return written
