"""Frozen settings: everything an operator can set. Every deadline has a name and a unit. Reading is `settings_file.py`.

What the keys mean to an operator is in `cortex.example.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.config.engine_traits import ThinkingSwitch

DEFAULT_MODELS_CONFIG = Path("/etc/cortex/models.toml")  # where the catalogue is looked for when nothing is configured


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
