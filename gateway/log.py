"""Structured logs: JSON for machines, a console form for a terminal. What is logged is up to the callers."""

from __future__ import annotations

import logging
import sys
from typing import Any

import msgspec
import structlog

from gateway.settings import LogSettings

__all__ = ["configure"]


def configure(settings: LogSettings) -> None:
    """Set up structlog for the process; logs go to stderr, stdout is for what a command was asked for."""
    as_json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*shared, *(_json() if as_json else _console())],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.BytesLoggerFactory(sys.stderr.buffer)
        if as_json
        else structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    # Libraries that use the standard library's logging: warnings and worse, on the same stream.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_encode)]


def _console() -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]


def _encode(event: dict[str, Any], **_: object) -> bytes:
    return msgspec.json.encode(event, enc_hook=str)
