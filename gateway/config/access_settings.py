"""Settings of keys, limits, the ledger and the store that has them; part of `Settings`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from catalogue.toml.types import Name, String, invalid, parsed_from
from gateway.config.ledger_settings import KeyLimitSettings

__all__ = ["AccessSettings", "StoreSettings"]


def _store_url(text: str) -> str:
    """No message contains the URL: it has a password."""
    if not text.startswith(("sqlite:///", "postgresql://")):
        raise invalid(
            "must begin with sqlite:/// or postgresql://",
            'for example "sqlite:///cortex.db" or "postgresql://db/cortex"',
        )
    return text


@dataclass(frozen=True, slots=True)
class AccessSettings:
    """Which clients may use the API."""

    mode: Literal["keys", "open"] | None = None
    """"keys": every request needs a key. "open": none does. No default: open on loopback, beyond it no start."""

    allowed_hosts: tuple[Name, ...] = ()
    """Host names that clients may use for an open gateway on loopback, besides those that can only be local."""

    limits: KeyLimitSettings = KeyLimitSettings()  # noqa: RUF009 - frozen


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Where keys and usage are kept."""

    url: Annotated[str, parsed_from(String, _store_url)] = field(default="sqlite:///cortex.db", repr=False)
    """sqlite:///PATH, relative to [state] dir, or postgresql://USER:PASSWORD@HOST/DATABASE for several gateways."""
