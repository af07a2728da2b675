"""Settings of the ledger, the price of energy, metrics, and the limits of keys that have none; part of `Settings`."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field

from catalogue.toml.types import (
    Count,
    CountOrZero,
    Flag,
    Name,
    Number,
    NumberOrZero,
    Share,
    String,
    invalid,
    parsed_from,
)
from gateway.config.rules import check_base_url

__all__ = ["EnergySettings", "KeyLimitSettings", "LedgerSettings", "MetricsSettings", "TracingSettings"]

_HOURS = 24
_LONGEST_DAYS = 36_500  # a century, so that the first day is one that the calendar has


def _zone(name: str) -> str:
    if name.upper() != "UTC":  # which needs no database of time zones
        try:
            ZoneInfo(name)
        except (OSError, ValueError, KeyError):  # KeyError: ZoneInfoNotFoundError
            raise invalid("is no time zone that this machine knows", 'for example "Europe/Berlin" or "UTC"') from None
    return name


def _prices(value: Any) -> Any:
    """One number is the price of every hour."""
    if isinstance(value, list):
        if len(value) not in {0, _HOURS}:
            raise invalid(f"must be one number, or {_HOURS}: the price of each hour from 0:00")
        return value
    return [value]


def _collector(url: str) -> str:
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.exporter") is None:
        raise invalid(
            "needs OpenTelemetry's SDK, which is not installed",
            "`scripts/install otel` in your clone of cortex installs it",
        )
    return check_base_url(url)


_COLLECTOR = parsed_from(Name, _collector)


@dataclass(frozen=True, slots=True)
class LedgerSettings:
    """The ledger: one row per request."""

    keep_days: Annotated[CountOrZero, Field(le=_LONGEST_DAYS)] = 90
    """Number of days for which rows are kept, at most 36,500; after them, sums per day are. 0 keeps no ledger."""

    currency: Name = "USD"
    """Currency of `cost` in models.toml, of budgets in money, and of the tariff. A name only: nothing is converted."""

    timezone: Annotated[str, parsed_from(String, _zone)] = "UTC"
    """Time zone in which days and the windows of budgets begin, for example "Europe/Berlin"."""


@dataclass(frozen=True, slots=True)
class EnergySettings:
    """What electricity costs."""

    tariff: Annotated[
        tuple[NumberOrZero, ...],
        BeforeValidator(
            _prices, json_schema_input_type=NumberOrZero | Annotated[list[NumberOrZero], Field(max_length=_HOURS)]
        ),
    ] = ()
    """Price per kWh in the ledger's currency: a number, or 24 for the hours of a day from 0:00. No default: unknown."""


@dataclass(frozen=True, slots=True)
class MetricsSettings:
    """Prometheus metrics."""

    per_key: Flag = False
    """Whether to export requests and tokens per key. Anyone who reads the metrics then sees the names of the keys."""

    otlp_endpoint: Annotated[str, _COLLECTOR] | None = None
    """Base URL of a collector that gets the metrics by OTLP too; needs the extra `otel`. No default: none."""

    otlp_interval_seconds: Number = 15
    """Seconds from one export by OTLP to the next."""


@dataclass(frozen=True, slots=True)
class TracingSettings:
    """Traces, by OTLP over HTTP; needs the extra `otel`. Prompts, answers and keys are not in them."""

    otlp_endpoint: Annotated[str, _COLLECTOR] | None = None
    """Base URL of the collector, for example "http://localhost:4318". No default: no traces."""

    sample: Share = 1.0
    """Share of the requests that are traced, 0 to 1, where the client's `traceparent` does not decide."""


@dataclass(frozen=True, slots=True)
class KeyLimitSettings:
    """Limits of every key that does not set its own."""

    rpm: Count | None = None
    """Number of requests per minute. No default: no limit."""

    tpm: Count | None = None
    """Tokens per minute, prompt and completion. No default: no limit."""

    concurrency: Count | None = None
    """Number of requests at the same time. No default: no limit."""
