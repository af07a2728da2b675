"""What each key of `cortex.toml` must be. Defaults are in `settings.py`: a new key is a row here and a field there."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

from catalogue.toml import fields
from catalogue.toml.fields import Field, Place
from gateway.config.engine_traits import DIALECTS
from gateway.config.settings import (
    AdminSettings,
    AuditSettings,
    DeadlineSettings,
    EvictionSettings,
    GatewaySettings,
    LimitSettings,
    Listen,
    LogSettings,
    NeuronSettings,
    PollSettings,
    RetrySettings,
    StreamingSettings,
)


def _listen(value: object, place: Place) -> Listen:
    """`host:port`, an IPv6 host in brackets."""
    found = _HOST_PORT.fullmatch(fields.text(value, place))
    if found is None:
        place.refuse("must be host:port", 'for example "127.0.0.1:31313", "0.0.0.0:31313" or "[::1]:31313"')
    host, port = found["ipv6"] or found["host"], int(found["port"])
    if port > _LARGEST_PORT:
        place.refuse(f"has a port beyond {_LARGEST_PORT}")
    if found["ipv6"] or _ALL_DIGITS_AND_DOTS.fullmatch(host):
        try:
            ipaddress.ip_address(host)
        except ValueError:
            place.refuse("is not an IP address")
    return Listen(host, port)


def _endpoint(value: object, place: Place) -> str:
    """A base URL, without its trailing slash. Never echoed: people put passwords into URLs."""
    url = fields.name(value, place)
    try:
        parts = urlsplit(url)
        port_is_fine = parts.port != 0  # reading a port out of range raises
    except ValueError:
        place.refuse("is not a URL", _ENDPOINT_EXAMPLE)
    if parts.scheme not in {"http", "https"} or not parts.hostname or not port_is_fine:
        place.refuse("must be an http or https URL with a host", _ENDPOINT_EXAMPLE)
    if parts.username is not None:
        place.refuse("must not carry a user or password")
    if not _can_be_looked_up(parts.hostname):
        place.refuse("has a host that no name server could know", "labels of 1 to 63 characters, one dot between them")
    if "?" in url or "#" in url:
        place.refuse("must not have a query or a fragment", "paths are appended to it")
    if any(part in {"", ".", ".."} for part in parts.path.rstrip("/").split("/")[1:]) or set(url) & set(" \\"):
        place.refuse("has a path that servers would read in different ways", "no //, ., .., spaces or backslashes")
    return url.rstrip("/")


def _can_be_looked_up(host: str) -> bool:
    """As the resolver will encode it; it raises, of all things, a UnicodeError."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _base_path(value: object, place: Place) -> str:
    """A path to put before `/chat/completions`, without its trailing slash; "/" and "" are none."""
    path = fields.text(value, place).rstrip("/")
    if path and _BASE_PATH.fullmatch(path) is None:
        place.refuse('must be a path such as "/v1" or "/api/v1"', "letters, digits and - . _ ~ between slashes")
    return path


def _names(value: object, place: Place) -> dict[str, str]:
    """A table of names to names."""
    if not isinstance(value, dict):
        place.refuse(f"must be a table, not {fields.kind_of(value)}", 'for example { "Qwen/Qwen3-8B" = "qwen3:8b" }')
    return {fields.name(key, place / key): fields.name(name, place / key) for key, name in value.items()}


def _neuron(value: object, place: Place) -> NeuronSettings:
    """One `[[neurons]]` table: its keys one by one, then which of them go together."""
    if isinstance(value, dict):
        kind = value.get("kind", "neuron")
        if kind == "neuron":
            _refuse_keys_of_engines(value, place)
        elif kind == "openai":
            _refuse_a_doubled_base_path(value, place)
    neuron: NeuronSettings = _NEURON_RECORD(value, place)
    if neuron.engine == "cortex" and isinstance(value, dict) and "dialects" not in value:
        return replace(neuron, dialects=DIALECTS)  # ours, all of them
    return neuron


def _refuse_keys_of_engines(table: Mapping[str, object], place: Place) -> None:
    for key in ENGINE_FIELDS:
        if key in table:
            (place / key).fault('is for kind = "openai" only', 'a neuron needs none of it; or add kind = "openai"')


def _refuse_a_doubled_base_path(table: Mapping[str, object], place: Place) -> None:
    """OpenAI's SDKs want a base URL with `/v1`, so that is what gets pasted."""
    endpoint = table.get("endpoint")
    if isinstance(endpoint, str) and endpoint.rstrip("/").endswith("/v1") and "base_path" not in table:
        hint = "leave it off, or set base_path to what comes after the endpoint"
        (place / "endpoint").fault("ends with /v1, which base_path adds", hint)


def _path(value: object, place: Place) -> Path:
    """A path; whether it is there is for whoever uses it to find."""
    return Path(fields.name(value, place))


def _secret(value: object, place: Place) -> str:
    """Any string fit for a header."""
    secret = fields.text(value, place)
    if not secret or not secret.isascii() or not secret.isprintable() or " " in secret:
        place.refuse("must be printable ASCII without spaces, and not empty")
    return secret


_HOST_PORT = re.compile(
    r"(?:\[(?P<ipv6>[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(?:%[\w.-]+)?)\]|(?P<host>[\w.-]+)):(?P<port>[0-9]{1,9})"
)
_BASE_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._~-]+)+")
_ALL_DIGITS_AND_DOTS = re.compile(r"[0-9.]+")
_LARGEST_PORT = 65535
_ENDPOINT_EXAMPLE = 'for example "http://gpu-1:13131"'

_POSITIVE = fields.number(minimum=0, above=True)
_OR_ZERO = fields.number(minimum=0)
_COUNT = fields.integer(minimum=1)
_COUNT_OR_ZERO = fields.integer(minimum=0)

GATEWAY_FIELDS = {
    "listen": Field(_listen),
    "metrics_listen": Field(_listen),
    "body_limit_mb": Field(_POSITIVE),
    "drain_seconds": Field(_OR_ZERO),
    "access_log": Field(fields.boolean),
    "owned_by": Field(fields.name),
    "cors_origins": Field(fields.array(fields.name)),
    "spool_dir": Field(_path),
    "http_server": Field(fields.one_of("cortex", "hypercorn")),
}
DEADLINE_FIELDS = {
    "header_seconds": Field(_POSITIVE),
    "upload_seconds": Field(_POSITIVE),
    "connect_seconds": Field(_POSITIVE),
    "queue_seconds": Field(_POSITIVE),
    "load_seconds": Field(_POSITIVE),
    "first_byte_seconds": Field(_POSITIVE),
    "idle_seconds": Field(_POSITIVE),
    "client_write_seconds": Field(_POSITIVE),
}
STREAMING_FIELDS = {
    "keepalive_seconds": Field(_OR_ZERO),
    "early_commit_seconds": Field(_OR_ZERO),
}
POLL_FIELDS = {
    "interval_seconds": Field(_POSITIVE),
    "timeout_seconds": Field(_POSITIVE),
    "misses": Field(_COUNT),
}
EVICTION_FIELDS = {
    "strategy": Field(fields.one_of("lru")),
    "defrag_after_cycles": Field(_COUNT_OR_ZERO),
    "idle_ttl_seconds": Field(_OR_ZERO),
    "min_residency_seconds": Field(_OR_ZERO),
}
RETRY_FIELDS = {"attempts": Field(_COUNT_OR_ZERO)}
LIMIT_FIELDS = {
    "header_bytes": Field(_COUNT),
    "connections": Field(_COUNT),
    "requests": Field(_COUNT),
    "queue": Field(_COUNT_OR_ZERO),
    "upstream_idle_connections": Field(_COUNT_OR_ZERO),
    "explain_requests": Field(_COUNT_OR_ZERO),
    "bodies_mb": Field(_POSITIVE),
    "spool_mb": Field(_OR_ZERO),
}
LOG_FIELDS = {
    "format": Field(fields.one_of("auto", "json", "console")),
    "level": Field(fields.one_of("debug", "info", "warning", "error", "critical")),
}
ADMIN_FIELDS = {"token": Field(_secret), "public": Field(fields.boolean)}
AUDIT_FIELDS = {
    "path": Field(fields.name),
    "rotate_mb": Field(_POSITIVE),
    "rotated_files": Field(_COUNT_OR_ZERO),
    "history": Field(fields.name),
    "history_files": Field(_COUNT),
    "history_mb": Field(_POSITIVE),
    "rollouts": Field(fields.name),
}
ENGINES = ("cortex", "llamacpp", "lmstudio", "ollama", "sglang", "tabbyapi", "transformers", "vllm")
ENGINE_FIELDS = {
    "api_key": Field(_secret),
    "base_path": Field(_base_path),
    "models": Field(fields.array(fields.name)),
    "serves": Field(_names),
    "vram_mb": Field(_COUNT),
    "engine": Field(fields.one_of(*ENGINES)),
}
NEURON_FIELDS = {
    "name": Field(fields.name, required=True),
    "endpoint": Field(_endpoint, required=True),
    "kind": Field(fields.one_of("neuron", "openai")),
    "dialects": Field(fields.array(fields.one_of(*DIALECTS))),
    "thinking": Field(fields.one_of("chat_template_kwargs", "reasoning_effort", "none")),
    "reasoning_content": Field(fields.boolean),
    "system_anywhere": Field(fields.boolean),
    "ask_usage": Field(fields.boolean),
    **ENGINE_FIELDS,
}
_NEURON_RECORD = fields.record(NeuronSettings, NEURON_FIELDS)
SECTIONS: Mapping[str, tuple[type, Mapping[str, Field]]] = {
    "gateway": (GatewaySettings, GATEWAY_FIELDS),
    "deadlines": (DeadlineSettings, DEADLINE_FIELDS),
    "streaming": (StreamingSettings, STREAMING_FIELDS),
    "poll": (PollSettings, POLL_FIELDS),
    "eviction": (EvictionSettings, EVICTION_FIELDS),
    "retries": (RetrySettings, RETRY_FIELDS),
    "limits": (LimitSettings, LIMIT_FIELDS),
    "log": (LogSettings, LOG_FIELDS),
    "admin": (AdminSettings, ADMIN_FIELDS),
    "audit": (AuditSettings, AUDIT_FIELDS),
}
SETTINGS_FIELDS = {
    "models_config": Field(fields.name),
    **{section: Field(fields.record(build, rows)) for section, (build, rows) in SECTIONS.items()},
    "neurons": Field(fields.array(_neuron, of_tables=True)),
}
HOMES = {
    **{key: f"in [{section}]" for section, (_, rows) in SECTIONS.items() for key in rows},
    **dict.fromkeys(SECTIONS, "at the top level, in a [header] of its own"),
    "models_config": "at the top of the file, before the first [header]",
    "neurons": "at the top level, as [[neurons]]",
}
