"""Everything an operator can set in `cortex.toml`, as frozen dataclasses. Only `load` checks values.

The string below a key is its description in `cortex schema config`. A new key is a field here and a line in
`cortex.example.toml`. The names of keys end with their units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator

from catalogue.toml.addresses import Listen, ListenAddress, PathBesideConfig, Secret
from catalogue.toml.types import (
    FILE,
    Count,
    CountOrZero,
    Flag,
    Name,
    Number,
    NumberOrZero,
    checked,
    refuse_duplicates,
)
from gateway.config import rules
from gateway.config.access_settings import AccessSettings, StoreSettings
from gateway.config.engine_traits import DialectName, EngineName, ThinkingSwitch
from gateway.config.header_names import PASSED_TO_CLIENTS, PASSED_TO_NEURONS
from gateway.config.ledger_settings import EnergySettings, LedgerSettings, MetricsSettings, TracingSettings

__all__ = [
    "DEFAULT_MODELS_CONFIG",
    "AccessSettings",
    "AdminSettings",
    "AuditSettings",
    "CaptureSettings",
    "DeadlineSettings",
    "EnergySettings",
    "EvictionSettings",
    "GatewaySettings",
    "LedgerSettings",
    "LimitSettings",
    "Listen",
    "LogSettings",
    "MetricsSettings",
    "NeuronSettings",
    "NeuronTables",
    "PollSettings",
    "RetrySettings",
    "Settings",
    "StateSettings",
    "StoreSettings",
    "StreamingSettings",
    "TlsSettings",
    "TracingSettings",
]

DEFAULT_MODELS_CONFIG = Path("/etc/cortex/models.toml")  # where the catalogue is looked for when nothing is configured
_API = Listen("127.0.0.1", 31313)  # loopback: other machines cannot reach the API until an operator opens it
_METRICS = Listen("127.0.0.1", 31314)


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """The gateway's addresses, its limits on one request, and how it presents itself."""

    listen: ListenAddress = _API
    """TCP address of the API, host:port. Port 0 takes a free port."""

    metrics_listen: ListenAddress = _METRICS
    """TCP address of Prometheus metrics and the admin API, host:port. Port 0 takes a free port."""

    body_limit_mb: Number = 64
    """Largest request body, in MiB. A larger one gets 413."""

    drain_seconds: NumberOrZero = 300
    """How long running requests may go on after SIGTERM, in seconds."""

    access_log: Flag = True
    """Whether to log one line per request."""

    owned_by: Name = "helexa"
    """The value of `owned_by` for every model in /v1/models."""

    cors_origins: tuple[Name, ...] = ("*",)
    """Origins whose web pages may call the API from a browser. "*" allows all, an empty array none."""

    keep_alive_seconds: Number = 650
    """Seconds an idle client connection stays open. Load balancers should close theirs first."""

    pass_request_headers: tuple[Annotated[str, PASSED_TO_NEURONS], ...] = ()
    """Further request headers that neurons get, by name. docs/api.md lists those that always pass."""

    pass_headers: tuple[Annotated[str, PASSED_TO_CLIENTS], ...] = ()
    """Further response headers of neurons that clients get, by name. docs/api.md lists those that always pass."""

    spool_dir: PathBesideConfig | None = None
    """Directory for uploads that wait on disk. Relative to this file. No default: the system's directory, TMPDIR."""

    http_server: Literal["cortex", "hypercorn"] = "cortex"
    """HTTP server of the API. "hypercorn" speaks HTTP/2 and needs four times the CPU."""


@dataclass(frozen=True, slots=True)
class DeadlineSettings:
    """How long each phase of a request may take. No deadline covers a whole stream."""

    header_seconds: Number = 30
    """Seconds for a request's header to arrive, else 408."""

    connect_seconds: Number = 5
    """Seconds to open a connection to a neuron."""

    upload_seconds: Number = 30
    """Seconds for every 16 KiB of a request's body to arrive, else 408. The whole body may take longer."""

    queue_seconds: Number = 60
    """Seconds a request may wait in the queue of a model with `max_concurrent`."""

    load_seconds: Number = 1800
    """Seconds a request may wait for its model to be loaded."""

    first_byte_seconds: Number = 600
    """Seconds from the end of the outgoing request to the first byte of the response: the whole prefill."""

    idle_seconds: Number = 300
    """Seconds between two chunks of a response."""

    client_write_seconds: Number = 60
    """Seconds a client may read nothing before its connection is closed."""


@dataclass(frozen=True, slots=True)
class StreamingSettings:
    """What a streaming client receives while the neuron is silent."""

    keepalive_seconds: NumberOrZero = 1
    """Seconds of silence in a stream before an SSE comment is sent. 0 sends none. A long silence gets fewer."""

    early_commit_seconds: NumberOrZero = 5
    """Seconds before a streamed response begins although the neuron's has not. 0 waits for the neuron."""

    pump: bool = True
    """Whether one task carries all streams that are being relayed. False: a task for each, which costs more CPU."""

    pump_coalesce_us: CountOrZero = 500
    """Microseconds that a chunk may wait under load, so that more streams are ready at once. 0 never waits."""


@dataclass(frozen=True, slots=True)
class PollSettings:
    """How neurons are polled."""

    interval_seconds: Number = 10
    """Seconds from one poll of a neuron to the next."""

    timeout_seconds: Number = 5
    """Seconds a neuron may take to answer a poll."""

    misses: Count = 3
    """Number of failed polls in a row after which a neuron counts as down."""


@dataclass(frozen=True, slots=True)
class EvictionSettings:
    """When loaded models are unloaded. The least recently used model is evicted first."""

    defrag_after_cycles: CountOrZero = 50
    """Number of unloads on a neuron after which the log advises a restart of the neuron. 0 never does."""

    idle_ttl_seconds: NumberOrZero = 0
    """Seconds without a request after which a model is unloaded. 0 unloads models only to make room."""

    min_residency_seconds: NumberOrZero = 30
    """Seconds after its load during which a model is not evicted."""


@dataclass(frozen=True, slots=True)
class RetrySettings:
    """Retries on other neurons."""

    attempts: CountOrZero = 2
    """Number of further attempts after the first. There are none after the client has received anything."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Bounds on everything that clients can make grow."""

    header_bytes: Count = 65536
    """Largest request header, in bytes."""

    connections: Count = 10_000
    """Number of open client connections. An idle one is closed for a new one. Each needs 2 file descriptors."""

    requests: Count = 5_000
    """Number of running requests; further ones get 503."""

    queue: CountOrZero = 1_000
    """Number of requests that wait for a slot. Beyond it, the key with the most for its weight gets 503."""

    upstream_idle_connections: CountOrZero = 256
    """Number of idle connections to neurons that are kept open."""

    explain_requests: CountOrZero = 1_000
    """Number of finished requests remembered for `cortex explain`, about 2 KiB each."""

    explain_refused: CountOrZero = 100
    """Number of further remembered requests that were refused before a neuron was asked."""

    bodies_mb: Number = 2048
    """Memory for the bodies of all requests, in MiB, else 503. Rewritten copies may need as much again."""

    spool_mb: NumberOrZero = 4096
    """Disk space in `spool_dir` for all uploads, in MiB, else 503."""


@dataclass(frozen=True, slots=True)
class LogSettings:
    """The log, on stderr."""

    format: Literal["auto", "json", "console"] = "auto"
    """"json", "console", or "auto": "console" on a terminal, else "json"."""

    level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least severe level that is logged."""


@dataclass(frozen=True, slots=True)
class AdminSettings:
    """The admin API, /admin/* on the metrics port."""

    token: Secret | None = field(default=None, repr=False)
    """Deprecated: a bearer token with the verbs read, operate and keys. Create a key instead. No default."""

    public: Flag = False
    """Whether the admin API is on the public port too."""


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """TLS on the port of the API. The files are in PEM form and are read again when they change."""

    cert: PathBesideConfig | None = None
    """Certificate with its chain. Relative to this file. No default: without one the port has no TLS."""

    key: PathBesideConfig | None = None
    """Private key of the certificate, not encrypted. Relative to this file. No default."""

    client_ca: PathBesideConfig | None = None
    """CA whose certificates clients must have. Relative to this file. No default: clients need none."""

    admin: Flag = False
    """Whether the port of metrics and admin API has TLS too, with the same certificate and client CA."""


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """Captures: operators have the gateway keep the texts of an alias in memory for a while."""

    enabled: Flag = False
    """Whether operators may start captures. Without it no text is ever shown."""

    max_mb: Number = 16
    """Memory for all captured texts, in MiB."""

    max_seconds: Number = 3600
    """The longest time of one capture, in seconds. Its texts are erased at its end."""


@dataclass(frozen=True, slots=True)
class StateSettings:
    """Where cortex keeps what it writes: audit log, history, rollouts, drains, keys and usage."""

    dir: PathBesideConfig | None = None
    """Directory, relative to this file. Default: that of models.toml, or /var/lib/cortex if that is under /etc."""


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """Records of changes to models.toml. Relative paths are relative to [state] dir."""

    path: Name = "models.audit.jsonl"
    """File of the audit log: one line per change, each with the hash of the line before."""

    rotate_mb: Number = 8
    """Size at which the audit log is rotated, in MiB."""

    rotated_files: CountOrZero = 100
    """Number of rotated audit logs to keep. 0 keeps all."""

    history: Name = "models.history"
    """Directory of earlier versions of models.toml, for `cortex alias rollback`."""

    history_files: Count = 200
    """Number of earlier versions to keep."""

    history_mb: Number = 64
    """Total size of the earlier versions, in MiB."""

    rollouts: Name = "models.rollouts.json"
    """File with the state of running rollouts, so that a restart continues them."""


@dataclass(frozen=True, slots=True)
class NeuronSettings:
    """One neuron, the daemon on a GPU host, or any server that speaks the OpenAI API."""

    name: Name
    """Unique name, used by `pinned_on` and the metrics."""

    endpoint: Annotated[str, rules.ENDPOINT]
    """Base URL, http or https."""

    kind: Literal["neuron", "openai"] = "neuron"
    """"neuron", or "openai" for another server that speaks the OpenAI API."""

    api_key: Secret | None = field(default=None, repr=False)
    """Bearer token for this server. No default. For kind = "openai" only."""

    base_path: Annotated[str, rules.BASE_PATH] = "/v1"
    """Path where its API begins; "" for the root. For kind = "openai" only."""

    models: tuple[Name, ...] = ()
    """The server's own names of its models, if it cannot list them. For kind = "openai" only."""

    serves: Mapping[Name, Name] = field(default_factory=dict)
    """Our model ids to the server's own names. Other names stay as they are. For kind = "openai" only."""

    vram_mb: Count | None = None
    """Total GPU memory, in MB, for display. No default: unknown. For kind = "openai" only."""

    engine: EngineName | None = None
    """The server's software. No default: unknown. For kind = "openai" only."""

    dialects: tuple[DialectName, ...] = ("openai",)
    """The APIs it speaks; others are translated. The default for engine = "cortex" is all three."""

    thinking: ThinkingSwitch | None = None
    """How thinking is switched on and off. The default is "none" for engine = "transformers", else
    "chat_template_kwargs"."""

    reasoning_content: Flag = False
    """Whether it accepts `reasoning_content` in earlier messages."""

    system_anywhere: Flag = False
    """Whether it accepts system messages after the first message."""

    alternating_roles: Flag | None = None
    """Whether to merge consecutive messages of one role. No default: in translated requests only."""

    ask_usage: Flag | None = None
    """Whether to ask streams for usage. No default: true for engines known to report it (docs/engines.md)."""

    token: Secret | None = field(default=None, repr=False)
    """Bearer token of the neuron, [api] token of its neuron.toml. No default. For kind = "neuron" only."""


NeuronTable: TypeAlias = Annotated[
    NeuronSettings, BeforeValidator(rules.add_dialects_of_cortex), checked(rules.check_neuron)
]


NeuronTables: TypeAlias = Annotated[tuple[NeuronTable, ...], checked(refuse_duplicates("name"))]


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of the cortex gateway, read once at start."""

    __pydantic_config__ = FILE

    gateway: Annotated[GatewaySettings, checked(rules.check_addresses)] = GatewaySettings()
    deadlines: DeadlineSettings = DeadlineSettings()
    streaming: StreamingSettings = StreamingSettings()
    poll: PollSettings = PollSettings()
    eviction: EvictionSettings = EvictionSettings()
    retries: RetrySettings = RetrySettings()
    limits: LimitSettings = LimitSettings()
    log: LogSettings = LogSettings()
    admin: AdminSettings = AdminSettings()
    tls: Annotated[TlsSettings, checked(rules.check_tls)] = TlsSettings()
    access: AccessSettings = AccessSettings()  # noqa: RUF009 - frozen
    store: StoreSettings = StoreSettings()  # noqa: RUF009 - frozen
    ledger: LedgerSettings = LedgerSettings()  # noqa: RUF009 - frozen
    energy: EnergySettings = EnergySettings()  # noqa: RUF009 - frozen
    metrics: MetricsSettings = MetricsSettings()  # noqa: RUF009 - frozen
    tracing: TracingSettings = TracingSettings()  # noqa: RUF009 - frozen
    capture: CaptureSettings = CaptureSettings()
    state: StateSettings = StateSettings()
    audit: AuditSettings = AuditSettings()
    neurons: NeuronTables = ()
    """The GPU hosts and other servers, one table each. Default: none."""

    models_config: PathBesideConfig | None = None
    """Path of models.toml. Relative to this file. No default: /etc/cortex/models.toml, if it exists."""

    neurons_config: PathBesideConfig | None = None
    """Path of a file of [[neurons]], read again when it changes, instead of those in this file. Relative to this file.
    No default."""
