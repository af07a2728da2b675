"""A configuration fault as one line of text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from catalogue.toml.faults import Fault

__all__ = ["fault_text"]


def fault_text(fault: Mapping[str, Any], path: str | None = None) -> str:
    """The text of a fault that the admin API or `/health` describes in JSON. `path` is for those without their own."""
    return str(Fault(path or fault["path"], fault["line"], fault["key"], fault["message"], fault["hint"]))
