"""Gateways by name, for people who have several: `[gateways.NAME]` in `~/.config/cortex/config.toml`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import tomli

from catalogue.nearest import did_you_mean

__all__ = ["InvalidProfile", "Profile", "find_profile", "profiles_path"]


class InvalidProfile(Exception):
    """There is no such gateway, or the file is faulty; the text says which."""


@dataclass(frozen=True, slots=True)
class Profile:
    """A gateway's admin port, and the key for it; None if the file has none.

    `ca` are certificates to trust; `cert` and `cert_key` this client's own. Their paths begin in the file's directory.
    """

    url: str
    key: str | None = None
    ca: Path | None = None
    cert: Path | None = None
    cert_key: Path | None = None


def profiles_path() -> Path:
    """The file, which need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "cortex" / "config.toml"


def find_profile(name_or_url: str) -> Profile:
    """The gateway with this name; a URL is a gateway without a name. Raises InvalidProfile."""
    if "://" in name_or_url:
        return Profile(name_or_url)
    path = profiles_path()
    gateways = _read(path)
    if name_or_url not in gateways:
        hint = did_you_mean(name_or_url, gateways)
        raise InvalidProfile(f"{path} has no [gateways.{name_or_url}], and a URL begins with http:// or https://{hint}")
    table = gateways[name_or_url]
    if (
        not isinstance(table, dict)
        or table.keys() - {"url", "key", *_PATHS}
        or not all(isinstance(v, str) for v in table.values())
    ):
        raise InvalidProfile(
            f"{path}: [gateways.{name_or_url}] must be a table with the strings url, key, {', '.join(_PATHS)}"
        )
    if "://" not in table.get("url", ""):
        raise InvalidProfile(f"{path}: [gateways.{name_or_url}] needs a url that begins with http:// or https://")
    paths = {name: path.parent / table[name] for name in _PATHS if name in table}
    return Profile(table["url"], table.get("key"), **paths)


_PATHS = ("ca", "cert", "cert_key")


def _read(path: Path) -> dict[str, object]:
    try:
        document = tomli.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomli.TOMLDecodeError) as error:
        raise InvalidProfile(f"{path}: {error}") from error
    gateways = document.get("gateways", {})
    return gateways if isinstance(gateways, dict) else {}
