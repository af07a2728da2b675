"""Values that `cortex.toml` and `neuron.toml` share: listen addresses, paths relative to the file, secrets."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeAlias

from pydantic import ValidationInfo

from catalogue.toml.types import Name, String, invalid, parsed_from

__all__ = ["Listen", "ListenAddress", "PathBesideConfig", "Secret"]


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address. Port 0 asks the kernel for a free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


_HOST_PORT = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?)\]|(?P<host>[\w.-]+)):(?P<port>[0-9]{1,9})"
)
_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
_LARGEST_PORT = 65535


def _listen(text: str) -> Listen:
    """`host:port`, an IPv6 host in brackets."""
    found = _HOST_PORT.fullmatch(text)
    if found is None:
        raise invalid("must be host:port", 'for example "127.0.0.1:31313", "0.0.0.0:31313" or "[::1]:31313"')
    host, port = found["ipv6"] or found["host"], int(found["port"])
    if port > _LARGEST_PORT:
        raise invalid(f"has a port above {_LARGEST_PORT}")
    if found["ipv6"] or _DIGITS_AND_DOTS.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise invalid("is not an IP address") from None
    return Listen(host, port)


def _beside_config(text: str, info: ValidationInfo) -> Path:
    """A path, relative to the directory of the config file and never to the working directory.

    `directory` of the validation context is that directory, or None without a config file.
    """
    directory: Path | None = (info.context or {})["directory"]
    path = Path(text)
    if directory is None and not path.is_absolute():
        raise invalid(
            "is a relative path, and there is no config file it could be relative to", "write an absolute path"
        )
    return path if directory is None else directory / path


def _secret(text: str) -> str:
    """Text that fits into an HTTP header."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise invalid("must be printable ASCII without spaces, and not empty")
    return text


ListenAddress: TypeAlias = Annotated[Listen, parsed_from(String, _listen)]
PathBesideConfig: TypeAlias = Annotated[Path, parsed_from(Name, _beside_config)]
"""A path, relative to the directory of the file it is in. The validation context has that `directory`, or None."""
Secret: TypeAlias = Annotated[str, parsed_from(String, _secret)]
