"""Frozen settings from `cortex.toml`, `CORTEX_` environment and flags. Every deadline has a name and a unit.

Reading and refusing live here too; see `load`. What the keys mean to an operator is in `cortex.example.toml`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


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
    http_server: str = "cortex"  # or "hypercorn": HTTP/2 at four times the CPU; docs/decisions/0003


@dataclass(frozen=True, slots=True)
class DeadlineSettings:
    """`[deadlines]`: one per phase of a request, never one over a stream (lessons.md, the 300 s cut)."""

    header_seconds: float = 30
    connect_seconds: float = 5
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


@dataclass(frozen=True, slots=True)
class LogSettings:
    """`[log]`: `format` is "auto" (console on a terminal, else JSON), "json" or "console"."""

    format: str = "auto"
    level: str = "info"


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """`[admin]`: bearer token for `/admin/*`; None leaves the admin API off."""

    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class NeuronSettings:
    """`[[neurons]]`: one daemon. `endpoint` is its base URL without a trailing slash."""

    name: str
    endpoint: str
    kind: str = "neuron"


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
    neurons: tuple[NeuronSettings, ...] = ()
    models_config: Path | None = None
