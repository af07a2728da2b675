"""What the values of `cortex.toml` must look like, as annotations for `settings`, and which keys go together."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, get_args
from urllib.parse import urlsplit

from catalogue.toml.types import CheckedTable, Name, String, invalid, parsed_from
from gateway.config.engine_traits import DialectName

__all__ = [
    "BASE_PATH",
    "ENDPOINT",
    "add_dialects_of_cortex",
    "check_addresses",
    "check_base_url",
    "check_neuron",
    "check_tls",
]


# Addresses.


def check_addresses(gateway: CheckedTable) -> None:
    """Refuse one address for both ports. Port 0 is a different free port each time."""
    settings = gateway.value
    if settings is not None and settings.listen.port and settings.listen == settings.metrics_listen:
        given = "metrics_listen" in gateway.raw
        key, other = ("metrics_listen", "listen") if given else ("listen", "metrics_listen")
        gateway.refuse((key,), f"is the same address as {other}", "give one of them another port")


def check_tls(tls: CheckedTable) -> None:
    """Refuse a certificate without its key, a key without its certificate, and what has no effect without both."""
    given = set(tls.raw)
    for key, other in (("cert", "key"), ("key", "cert")):
        if key in given and other not in given:
            tls.refuse((key,), f"needs {other}", "give both, or remove both")
    for key in sorted(given & {"client_ca", "admin"}):
        if not given & {"cert", "key"} and tls.raw[key]:
            tls.refuse((key,), "has no effect without cert and key", "give both, or remove it")


_ENDPOINT_EXAMPLE = 'for example "http://gpu-1:13131"'


def check_base_url(url: str) -> str:
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
    wrong = next((path for path in _INFERENCE_PATHS if parts.path.rstrip("/").endswith(path)), None)
    if wrong is not None:
        raise invalid(f"ends with {wrong}, a path of requests", "write the base URL; cortex appends paths to it")
    return url.rstrip("/")


# Paths of inference requests, as in the URLs of examples that operators copy.
_INFERENCE_PATHS = (
    "/chat/completions", "/completions", "/embeddings", "/responses", "/messages", "/rerank", "/images/generations",
    "/audio/speech", "/audio/transcriptions", "/v1/models",
)  # fmt: skip


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


ENDPOINT = parsed_from(Name, check_base_url)
BASE_PATH = parsed_from(String, _base_path)


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
    elif kind == "openai" and "token" in table:
        neuron.refuse(("token",), 'is for kind = "neuron" only', "an engine's token is `api_key`")
    endpoint = table.get("endpoint")
    # The SDKs of OpenAI want a base URL with /v1, so operators paste one.
    ends_with_v1 = isinstance(endpoint, str) and endpoint.rstrip("/").endswith("/v1")
    if kind == "openai" and ends_with_v1 and "base_path" not in table:
        hint = "remove /v1, or set base_path to the path that follows the endpoint"
        neuron.refuse(("endpoint",), "ends with /v1, which base_path adds", hint)
