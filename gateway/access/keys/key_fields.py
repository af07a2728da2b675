"""What an operator may set of a key: from JSON (admin API, command line, export) to checked values, and back."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, get_args

from catalogue.nearest import did_you_mean
from gateway.access.keys.key import Key, Verb
from gateway.access.keys.key_table import StoredKey
from gateway.access.limits import budget_text
from gateway.access.limits.limit import Budget

__all__ = ["FIELDS", "LONGEST_LIFE_S", "InvalidKey", "as_json", "duration_s", "parse_fields"]

VERBS: tuple[str, ...] = get_args(Verb)
OBSERVABLE = ("rpm", "tpm", "concurrency")
PRIORITIES = ("interactive", "batch")
NAME_CHARACTERS = 100
GLOBS, GLOB_CHARACTERS = 64, 256
BUDGETS = 16
LARGEST_INTEGER = 2**31 - 1  # of a column
LARGEST_WEIGHT = 10_000
_DURATION = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,3})?)(s|m|h|d|w)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class InvalidKey(ValueError):
    """A field of a key is wrong. `field` names it; the text says what to do."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


def parse_fields(given: Mapping[str, Any], *, currency: str = "USD") -> dict[str, Any]:
    """The columns of `keys` that these fields set; a field that is not given sets none.

    Args:
        given: Field -> JSON value, as `FIELDS` lists them.
        currency: `[ledger] currency`, the unit of money in budgets.

    Raises:
        InvalidKey: A field is unknown or has a wrong value.
    """
    columns: dict[str, Any] = {}
    for field, value in given.items():
        if field not in FIELDS:
            raise InvalidKey(field[:40], f"unknown field{did_you_mean(field, FIELDS)}")
        if field == "budgets":
            columns[field] = _budgets(field, value, currency)
        elif field == "expires":
            columns["expires_at"] = _expires(field, value)
        else:
            columns[field] = FIELDS[field](field, value)
    return columns


LONGEST_LIFE_S = 36_500 * 24 * 3600  # a hundred years


def duration_s(field: str, value: object, example: str = "90d") -> float:
    """`90d`, `24h`, `30m`, `10s` or `2w` in seconds. Raises InvalidKey."""
    found = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidKey(field, f"must be a number and a unit, s, m, h, d or w: for example {example}")
    return float(found[1]) * _SECONDS[found[2]]


def as_json(stored: StoredKey, *, currency: str = "USD", now: float | None = None) -> dict[str, Any]:
    """The key for operators; without anything of its secrets."""
    key, now = stored.key, time.time() if now is None else now
    return {
        "id": key.id,
        "name": key.name,
        "state": _state(key, now),
        "may": key.may,
        "verbs": [verb for verb in VERBS if verb in key.verbs],
        "rpm": key.limits.rpm,
        "tpm": key.limits.tpm,
        "concurrency": key.limits.concurrency,
        "budgets": [budget_text.as_text(budget, currency) for budget in key.limits.budgets],
        "observe": sorted(key.limits.observe),
        "weight": key.weight,
        "priority": key.priority,
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "old_secret_until": stored.old_until if stored.old_digest is not None and stored.old_until > now else None,
    }


def _state(key: Key, now: float) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "expired" if key.expires_at is not None and key.expires_at <= now else "active"


def _name(field: str, value: object) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= NAME_CHARACTERS:
        raise InvalidKey(field, f"must be a text of 1 to {NAME_CHARACTERS} characters")
    if not value.isprintable() or value != value.strip():
        raise InvalidKey(field, "must be printable, without white space at its ends")
    if value.startswith("ctx_"):
        raise InvalidKey(field, "must not begin with ctx_, as secrets do")
    return value


def _globs(field: str, value: object) -> list[str]:
    if not isinstance(value, list | tuple) or not 0 < len(value) <= GLOBS:
        raise InvalidKey(field, f"must be 1 to {GLOBS} globs, for example 'helexa/*'")
    for glob in value:
        if not isinstance(glob, str) or not 0 < len(glob) <= GLOB_CHARACTERS or not glob.isprintable():
            raise InvalidKey(field, f"a glob must be 1 to {GLOB_CHARACTERS} printable characters")
    return list(dict.fromkeys(value))


def _words(known: tuple[str, ...], *, may_be_empty: bool) -> Callable[[str, object], list[str]]:
    def parse(field: str, value: object) -> list[str]:
        if not isinstance(value, list | tuple) or not (value or may_be_empty):
            raise InvalidKey(field, f"must be a list of {', '.join(known)}")
        for word in value:
            if word not in known:
                hint = did_you_mean(word, known) if isinstance(word, str) else ""
                raise InvalidKey(field, f"must be of {', '.join(known)}{hint}")
        return [word for word in known if word in value]

    return parse


def _count_or_none(field: str, value: object) -> int | None:
    return None if value is None else _count(LARGEST_INTEGER)(field, value)


def _count(largest: int) -> Callable[[str, object], int]:
    def parse(field: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= largest:
            raise InvalidKey(field, f"must be a whole number from 1 to {largest}")
        return value

    return parse


def _priority(field: str, value: object) -> str:
    if value not in PRIORITIES or not isinstance(value, str):
        raise InvalidKey(field, f"must be {' or '.join(PRIORITIES)}")
    return value


def _budgets(field: str, value: object, currency: str) -> list[dict[str, Any]]:
    if not isinstance(value, list | tuple) or len(value) > BUDGETS:
        raise InvalidKey(field, f"must be at most {BUDGETS} texts, for example 'usd 20/month'")
    found: list[Budget] = []
    for number, text in enumerate(value, 1):
        if not isinstance(text, str):
            raise InvalidKey(field, f"budget {number}: must be a text, for example 'usd 20/month'")
        try:
            budget = budget_text.parse(text, currency)
        except budget_text.InvalidBudget as error:
            raise InvalidKey(field, f"budget {number}: {error}") from error
        if any((budget.unit, budget.window) == (other.unit, other.window) for other in found):
            raise InvalidKey(field, f"budget {number}: there is one of the same unit and window already")
        found.append(budget)
    return [{"unit": b.unit, "amount": b.amount, "window": b.window, "enforce": b.enforce} for b in found]


def _expires(field: str, value: object) -> float | None:
    if value is None or value == "never":
        return None
    duration = duration_s(field, value)
    if not 0 < duration <= LONGEST_LIFE_S:
        raise InvalidKey(field, "must be more than 0 and at most 36500d; `cortex key revoke` ends a key at once")
    return time.time() + duration


def _unix_time(field: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < 2**40:
        raise InvalidKey(field, "must be unix seconds, or null for never")
    return float(value)


FIELDS: Mapping[str, Callable[[str, object], Any]] = {
    "name": _name,
    "may": _globs,
    "verbs": _words(VERBS, may_be_empty=False),
    "rpm": _count_or_none,
    "tpm": _count_or_none,
    "concurrency": _count_or_none,
    "budgets": lambda field, value: _budgets(field, value, "USD"),
    "observe": _words(OBSERVABLE, may_be_empty=True),
    "weight": _count(LARGEST_WEIGHT),
    "priority": _priority,
    "expires": _expires,
    "expires_at": _unix_time,
}
"""The fields that can be set, with what checks each."""
