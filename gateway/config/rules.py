"""What the values of `cortex.toml` must look like, as annotations for `settings`, and which keys go together."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from pydantic import ValidationInfo

from catalogue.toml.types import CheckedTable, Name, String, invalid, parsed_from
from gateway.config.engine_traits import DialectName

__all__ = [
    "BASE_PATH",
    "ENDPOINT",
    "LISTEN",
    "PATH_BESIDE_CONFIG",
    "SECRET",
    "Listen",
    "add_dialects_of_cortex",
    "check_addresses",
    "check_neuron",
]


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address. Port 0 asks the kernel for a free port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


# Addresses.

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


def check_addresses(gateway: CheckedTable) -> None:
    """Refuse one address for both ports. Port 0 is a different free port each time."""
    settings = gateway.value
    if settings is not None and settings.listen.port and settings.listen == settings.metrics_listen:
        given = "metrics_listen" in gateway.raw
        key, other = ("metrics_listen", "listen") if given else ("listen", "metrics_listen")
        gateway.refuse((key,), f"is the same address as {other}", "give one of them another port")


_ENDPOINT_EXAMPLE = 'for example "http://gpu-1:13131"'


def _endpoint(url: str) -> str:
    """A base URL, without its trailing slash. No message contains the URL: people put passwords into URLs."""
    try:
        parts = urlsplit(url)
        port_is_good = parts.port != 0  # reading a port that is out of range raises
    except ValueError:
        raise invalid("is not a URL", _ENDPOINT_EXAMPLE) from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_good:
        raise invalid("must be an http or https URL with a host", _ENDPOINT_EXAMPLE)
    if parts.username is not None:
        raise invalid("must not contain a user or password")
    if not _can_be_resolved(parts.hostname):
        raise invalid(
            "has a host name that DNS does not allow", "use labels of 1 to 63 characters, one dot between them"
        )
    if "?" in url or "#" in url:
        raise invalid("must not have a query or a fragment", "cortex appends paths to it")
    if any(part in {"", ".", ".."} for part in parts.path.rstrip("/").split("/")[1:]) or set(url) & set(" \\"):
        raise invalid("has a path that servers interpret differently", "avoid //, ., .., spaces and backslashes")
    return url.rstrip("/")


def _can_be_resolved(host: str) -> bool:
    """Encode the host as the resolver does, which raises UnicodeError for bad labels."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


_BASE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")


def _base_path(text: str) -> str:
    """A path to put before `/chat/completions`, without its trailing slash; "/" and "" are the root."""
    path = text.rstrip("/")
    if path and _BASE_PATH.fullmatch(path) is None:
        raise invalid('must be a path such as "/v1" or "/api/v1"', "use letters, digits and - . _ ~ between slashes")
    return path


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


LISTEN = parsed_from(String, _listen)
ENDPOINT = parsed_from(Name, _endpoint)
BASE_PATH = parsed_from(String, _base_path)
PATH_BESIDE_CONFIG = parsed_from(Name, _beside_config)
SECRET = parsed_from(String, _secret)


# Neurons.

_KEYS_OF_ENGINES = ("api_key", "base_path", "models", "serves", "vram_mb", "engine")


def add_dialects_of_cortex(table: Any) -> Any:
    """Another cortex speaks all dialects, unless its table lists some."""
    if isinstance(table, dict) and table.get("engine") == "cortex" and "dialects" not in table:
        return table | {"dialects": list(get_args(DialectName))}
    return table


def check_neuron(neuron: CheckedTable) -> None:
    """Refuse keys that do not apply to the neuron's kind."""
    table: Mapping[str, Any] = neuron.raw
    kind = table.get("kind", "neuron")
    if kind == "neuron":
        for key in _KEYS_OF_ENGINES:
            if key in table:
                neuron.refuse((key,), 'is for kind = "openai" only', 'remove the key, or add kind = "openai"')
    endpoint = table.get("endpoint")
    # The SDKs of OpenAI want a base URL with /v1, so operators paste one.
    ends_with_v1 = isinstance(endpoint, str) and endpoint.rstrip("/").endswith("/v1")
    if kind == "openai" and ends_with_v1 and "base_path" not in table:
        hint = "remove /v1, or set base_path to the path that follows the endpoint"
        neuron.refuse(("endpoint",), "ends with /v1, which base_path adds", hint)
