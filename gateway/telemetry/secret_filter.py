"""Keeps secrets of keys out of the log: clients put them into paths, model names and request ids by mistake."""

from __future__ import annotations

import re
from typing import Any

__all__ = ["hide_secret", "hide_secrets"]

_SECRET = re.compile(r"(ctx_[0-9A-Za-z]{1,32}_)[0-9A-Za-z]{16,}")


def hide_secret(text: str) -> str:
    """The text without the secret part of any `ctx_<id>_<secret>` in it. The id stays: it tells which key to rotate."""
    return _SECRET.sub(r"\1…", text) if "ctx_" in text else text


def hide_secrets(event: dict[str, Any]) -> None:
    """Do so in each text of a log event."""
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = hide_secret(value)  # the key exists already, so the dictionary may change
