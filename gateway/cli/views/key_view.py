"""What `cortex key` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from gateway.cli.terminal import console, table

__all__ = ["print_key", "print_keys"]


def print_keys(keys: Iterable[Mapping[str, Any]]) -> None:
    """A table of keys."""
    shown = table("keys", "name", "id", "state", "may", "verbs", "limits", "expires")
    rows = list(keys)
    for key in rows:
        shown.add_row(
            key["name"],
            key["id"],
            key["state"],
            ", ".join(key["may"]),
            ",".join(key["verbs"]),
            _limits(key),
            _time(key["expires_at"], "never"),
        )
    out = console()
    if rows:
        out.print(shown)
    else:
        out.print("there are no keys; `cortex key create NAME` creates one")


def print_key(key: Mapping[str, Any]) -> None:
    """Everything about one key, a line per field."""
    out = console()
    fields = {
        "name": key["name"],
        "id": key["id"],
        "state": key["state"],
        "may": ", ".join(key["may"]),
        "verbs": ", ".join(key["verbs"]),
        "limits": _limits(key),
        "observed only": ", ".join(key["observe"]) or "-",
        "weight": str(key["weight"]),
        "priority": key["priority"],
        "created": _time(key["created_at"], "-"),
        "expires": _time(key["expires_at"], "never"),
    }
    if key["revoked_at"] is not None:
        fields["revoked"] = _time(key["revoked_at"], "-")
    if key["old_secret_until"] is not None:
        fields["old secret works until"] = _time(key["old_secret_until"], "-")
    width = max(map(len, fields))
    for name, text in fields.items():
        out.print(f"{name:{width}}  {text}", soft_wrap=True)


def _limits(key: Mapping[str, Any]) -> str:
    rates = [f"{key[name]:,} {text}" for name, text in _RATES.items() if key[name] is not None]
    return ", ".join([*rates, *key["budgets"]]) or "-"


_RATES = {"rpm": "requests/min", "tpm": "tokens/min", "concurrency": "at a time"}


def _time(unix_s: float | None, absent: str) -> str:
    """In the time zone of the operator's machine."""
    return absent if unix_s is None else f"{datetime.fromtimestamp(unix_s).astimezone():%Y-%m-%d %H:%M %Z}"
