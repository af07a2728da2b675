"""Frozen settings from `cortex.toml`, `CORTEX_` environment and flags. Every deadline has a name and a unit.

Reading and refusing live here too; see `load`. What the keys mean to an operator is in `cortex.example.toml`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tomli

from catalogue import fields
from catalogue.fields import Field, Override, Place, Report
from catalogue.load import in_file_order, parse_toml
from catalogue.models import Fault, FaultyFile
from catalogue.positions import KeyPath, Positions, scan
from gateway.backend import DIALECTS, ThinkingSwitch

DEFAULT_MODELS_CONFIG = Path("/etc/cortex/models.toml")  # where the catalogue is looked for when nothing is configured
ENVIRONMENT_PREFIX = "CORTEX_"


@dataclass(frozen=True, slots=True)
class Listen:
    """A TCP address; `port` 0 asks the kernel for a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`[gateway]`."""

    listen: Listen = Listen("127.0.0.1", 31313)
    metrics_listen: Listen = Listen("127.0.0.1", 31314)
    body_limit_mb: float = 64
    drain_seconds: float = 300
    access_log: bool = True
    owned_by: str = "helexa"
    cors_origins: tuple[str, ...] = ("*",)
    spool_dir: Path | None = None  # for uploads that must wait on disk for their `model`; None: the system's own
    http_server: str = "cortex"  # or "hypercorn": HTTP/2 at four times the CPU; docs/decisions/0003


@dataclass(frozen=True, slots=True)
class DeadlineSettings:
    """`[deadlines]`: one per phase of a request, never one over a stream (lessons.md, the 300 s cut)."""

    header_seconds: float = 30
    connect_seconds: float = 5
    upload_seconds: float = 30  # for every 16 KiB of a form, which may take long in all
    queue_seconds: float = 60
    load_seconds: float = 1800
    first_byte_seconds: float = 600
    idle_seconds: float = 300
    client_write_seconds: float = 60  # a client that reads nothing for this long is gone


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """`[streaming]`: what a client hears while there is nothing to say. 0 turns either off."""

    keepalive_seconds: float = 1
    early_commit_seconds: float = 5


@dataclass(frozen=True, slots=True)
class PollSettings:
    """`[poll]`."""

    interval_seconds: float = 10
    timeout_seconds: float = 5
    misses: int = 3


@dataclass(frozen=True, slots=True)
class EvictionSettings:
    """`[eviction]`."""

    strategy: str = "lru"
    defrag_after_cycles: int = 50
    idle_ttl_seconds: float = 0
    min_residency_seconds: float = 30


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """`[retries]`: `attempts` counts further tries after the first."""

    attempts: int = 2


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """`[limits]`: everything a client can make grow."""

    header_bytes: int = 65536
    connections: int = 10_000
    requests: int = 5_000
    queue: int = 1_000
    upstream_idle_connections: int = 256
    explain_requests: int = 1_000  # that have ended and are remembered
    bodies_mb: float = 2048  # of requests in memory, all together; count on as much again for what is sent on of them
    spool_mb: float = 4096  # of uploads on disk, all together: 64 of the default body limit


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`[log]`: `format` is "auto" (console on a terminal, else JSON), "json" or "console"."""

    format: str = "auto"
    level: str = "info"


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """`[admin]`: bearer token for `/admin/*`; None leaves the admin API off. `public`: on the public port, too."""

    token: str | None = field(default=None, repr=False)
    public: bool = False


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """`[audit]`: what is remembered of `models.toml`. Relative paths are relative to the directory it is in."""

    path: str = "models.audit.jsonl"
    rotate_mb: float = 8
    rotated_files: int = 100
    history: str = "models.history"
    history_files: int = 200
    history_mb: float = 64
    rollouts: str = "models.rollouts.json"


@dataclass(frozen=True, slots=True)
class NeuronSettings:
    """`[[neurons]]`: one daemon, or any server that speaks OpenAI's API. `endpoint` has no trailing slash.

    `dialects` is what it speaks; `thinking`, `reasoning_content` and `system_anywhere` are habits of its chat API (see
    `backend.Backend`). The others are for `kind = "openai"` only (docs/engines.md): `base_path` stands where we have
    `/v1`, without a trailing slash, and may be empty. `models` are the engine's own names where it cannot list them.
    `serves` maps our ids to the engine's own names. `vram_mb` is the total, for display. `engine` says which one it is,
    None that nobody said.
    """

    name: str
    endpoint: str
    kind: str = "neuron"
    api_key: str | None = field(default=None, repr=False)
    base_path: str = "/v1"
    models: tuple[str, ...] = ()
    serves: Mapping[str, str] = field(default_factory=dict)
    vram_mb: int | None = None
    engine: str | None = None
    dialects: tuple[str, ...] = ("openai",)
    thinking: ThinkingSwitch = "chat_template_kwargs"
    reasoning_content: bool = False
    system_anywhere: bool = False
    ask_usage: bool | None = None  # None: as the engine is known to take it (`backend.ENGINES_WITH_USAGE`)


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything an operator can set, once it has been read and found good."""

    gateway: GatewaySettings = GatewaySettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    streaming: StreamingSettings = StreamingSettings()
    poll: PollSettings = PollSettings()
    eviction: EvictionSettings = EvictionSettings()
    retries: RetrySettings = RetrySettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    admin: AdminSettings = AdminSettings()
    audit: AuditSettings = AuditSettings()
    neurons: tuple[NeuronSettings, ...] = ()
    models_config: Path | None = None


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings, and what was odd about where they came from but did not refuse them."""

    settings: Settings
    warnings: tuple[Fault, ...] = ()


def load(path: Path | None, environ: Mapping[str, str]) -> LoadedSettings:
    """Settings from the file, overridden by the environment; the defaults for what neither says.

    Args:
        path: The `cortex.toml`, or None to go by the environment alone.
        environ: The process's environment; only names that begin with `CORTEX_`, in any case, are looked at.

    Raises:
        FaultyFile: With every fault of file and environment at once. The value of a secret is in none of them.
    """
    document, positions = _read_file(path)
    report = Report(str(path or "environment"), positions, homes=_HOMES)
    report.overrides = _overlay(document, environ, report)
    settings = _read_settings(document, Place(report), path)
    if report.faults or settings is None:
        raise FaultyFile(in_file_order(report.faults))
    return LoadedSettings(settings, in_file_order(report.warnings))


def _read_file(path: Path | None) -> tuple[dict[str, Any], Positions]:
    if path is None:
        return {}, Positions()
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise FaultyFile((Fault(str(path), None, None, f"cannot be read: {reason}"),)) from error
    text, document = parse_toml(data, path=str(path))
    return document, scan(text)


def _read_settings(document: dict[str, Any], root: Place, path: Path | None) -> Settings | None:
    """None if anything is at fault. The looks across several keys happen regardless, on what is readable."""
    read = fields.read_fields(document, SETTINGS_FIELDS, root)
    if "gateway" in read:
        _refuse_one_address_twice(read["gateway"], document["gateway"], root / "gateway")
        read["gateway"] = _with_its_spool_beside(path, read["gateway"], root / "gateway" / "spool_dir")
    fields.refuse_duplicates(document.get("neurons"), "name", root / "neurons")
    _warn_of_one_neuron_twice(read.get("neurons", ()), root / "neurons")
    _warn_of_a_door_without_a_key(read.get("admin", AdminSettings()), root / "admin")
    if "models_config" in read:
        read["models_config"] = _beside(path, Path(read["models_config"]), root / "models_config")
    return None if root.report.faults else Settings(**read)


# What each key must be. The defaults are the dataclasses' above; a new key is a row here and a field there.


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
    if "?" in url or "#" in url:
        place.refuse("must not have a query or a fragment", "paths are appended to it")
    if any(part in {"", ".", ".."} for part in parts.path.rstrip("/").split("/")[1:]) or set(url) & set(" \\"):
        place.refuse("has a path that servers would read in different ways", "no //, ., .., spaces or backslashes")
    return url.rstrip("/")


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
_HOMES = {
    **{key: f"in [{section}]" for section, (_, rows) in SECTIONS.items() for key in rows},
    **dict.fromkeys(SECTIONS, "at the top level, in a [header] of its own"),
    "models_config": "at the top of the file, before the first [header]",
    "neurons": "at the top level, as [[neurons]]",
}


# Looks across several keys.


def _refuse_one_address_twice(gateway: GatewaySettings, said: Mapping[str, object], place: Place) -> None:
    if gateway.listen.port and gateway.listen == gateway.metrics_listen:
        key, other = ("metrics_listen", "listen") if "metrics_listen" in said else ("listen", "metrics_listen")
        (place / key).fault(f"is the same address as {other}", "give one of them another port")


def _warn_of_one_neuron_twice(neurons: tuple[NeuronSettings, ...], place: Place) -> None:
    first: dict[str, str] = {}
    for index, neuron in enumerate(neurons):
        if neuron.endpoint in first:
            message = f"is also the endpoint of {first[neuron.endpoint]!r}"
            (place / index / "endpoint").warn(message, "one neuron under two names is counted twice")
        first.setdefault(neuron.endpoint, neuron.name)


def _with_its_spool_beside(config: Path | None, gateway: GatewaySettings, place: Place) -> GatewaySettings:
    if gateway.spool_dir is None:
        return gateway
    return replace(gateway, spool_dir=_beside(config, gateway.spool_dir, place))


def _warn_of_a_door_without_a_key(admin: AdminSettings, place: Place) -> None:
    if admin.public and admin.token is None:
        (place / "public").warn("opens nothing", "there is no admin API without a token")


def _beside(config: Path | None, wanted: Path, place: Place) -> Path:
    """A relative path is relative to the config file, never to wherever the process was started."""
    if config is None and not wanted.is_absolute():
        place.fault("is relative, and there is no config file for it to be relative to", "write an absolute path")
        return wanted
    return wanted if config is None else config.absolute().parent / wanted


# The environment.


def _overlay(document: dict[str, Any], environ: Mapping[str, str], report: Report) -> dict[KeyPath, Override]:
    """Put what the environment says into the document, and tell which key paths that were.

    Whole tables come before the keys inside them, so `CORTEX_GATEWAY__LISTEN` beats `CORTEX_GATEWAY`.
    """
    overrides: dict[KeyPath, Override] = {}
    for variable, key in sorted(_variables(environ), key=lambda item: (len(item[1]), item[0])):
        if (odd := _why_unknown(key)) is not None:
            report.warnings.append(Fault(variable, None, None, *odd))
        elif key in overrides:
            report.warnings.append(Fault(variable, None, None, f"says the same as {overrides[key].variable}; ignored"))
        else:
            overrides[key] = Override(variable, environ[variable])
            _put(document, key, _literal(environ[variable]))
    return overrides


def _variables(environ: Mapping[str, str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    for variable in environ:
        if variable.upper().startswith(ENVIRONMENT_PREFIX) and variable.upper() not in _VARIABLES_OF_THE_COMMAND_LINE:
            yield variable, tuple(variable[len(ENVIRONMENT_PREFIX) :].lower().split("__"))


_VARIABLES_OF_THE_COMMAND_LINE = {"CORTEX_CONFIG"}


def _why_unknown(key: tuple[str, ...]) -> tuple[str, str | None] | None:
    """Message and hint; only a warning, because Kubernetes sets `CORTEX_PORT` and more beside a service of our name."""
    known: set[tuple[str, ...]] = {(name,) for name in SETTINGS_FIELDS}
    known |= {(section, name) for section, (_, rows) in SECTIONS.items() for name in rows}
    if key in known:
        return None
    near = fields.nearest("__".join(key), ("__".join(path) for path in known))
    return "sets nothing", None if near is None else f"did you mean {ENVIRONMENT_PREFIX}{near.upper()}?"


def _literal(text: str) -> object:
    """What `text` is as a TOML value, else `text` itself."""
    try:
        read = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text
    return read["value"] if len(read) == 1 else text


def _put(document: dict[str, Any], key: tuple[str, ...], value: object) -> None:
    """Set one path; a table is laid over the one in the file, key by key, anything else replaces."""
    table: object = document
    for name in key[:-1]:
        table = table.setdefault(name, {}) if isinstance(table, dict) else None
    if not isinstance(table, dict):
        return  # the file has no table there, and its operator will hear of it
    there = table.get(key[-1])
    table[key[-1]] = {**there, **value} if isinstance(value, dict) and isinstance(there, dict) else value
