"""Structured logs: JSON for machines, a console form for a terminal. What is logged is up to the callers.

A log must not be what a request waits for or dies of. So lines are written to stderr as far as it takes them without
waiting; what it does not take is kept, up to a limit, and what is beyond that or cannot be written at all (a full disk,
a reader that has gone) is counted, and told once lines can be written again.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
from collections import deque
from typing import Any

import msgspec
import structlog

from gateway.config.settings import LogSettings

__all__ = ["Lines", "configure"]

KEPT_BYTES = 1024 * 1024  # some two thousand requests: a reader that is away for longer than that misses some
# A pipe that says it is writable takes this much without blocking (pipe(7), PIPE_BUF); sockets take more.
WRITE_BYTES = 4096


def configure(settings: LogSettings) -> None:
    """Set up structlog for the process; logs go to stderr, stdout is for what a command was asked for."""
    stderr = sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY)  # none if started with 2>&-
    is_terminal = os.isatty(stderr)
    as_json = settings.format == "json" or (settings.format == "auto" and not is_terminal)
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[*shared, *(_json() if as_json else _console(colors=is_terminal))],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Loggers(Lines(stderr)),
        cache_logger_on_first_use=True,
    )
    # Libraries that use the standard library's logging: warnings and worse, on the same stream.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_encode)]


def _console(*, colors: bool) -> list[structlog.typing.Processor]:
    return [structlog.dev.ConsoleRenderer(colors=colors)]


def _encode(event: dict[str, Any], **_: object) -> bytes:
    try:
        return msgspec.json.encode(event, enc_hook=str)
    except UnicodeEncodeError:  # a file's name may be no UTF-8; nobody dies of a line in the log
        return json.dumps(event, default=str).encode()


class Lines:
    """Lines on their way to a file descriptor, by writes that do not block. Raises nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.lost = 0

    def write(self, line: bytes) -> None:
        """Write a line, which brings its line end along, after those that are still kept."""
        if self._kept_bytes + len(line) > KEPT_BYTES:
            self.lost += 1
        else:
            self._keep(line)
        try:
            self._flush()
        except OSError:
            self.lost += len(self._kept)
            self._kept.clear()
            self._kept_bytes = 0

    def _keep(self, line: bytes) -> None:
        self._kept.append(line)
        self._kept_bytes += len(line)

    def _flush(self) -> None:
        while self._kept and self._takes_some():
            self._write_some(self._kept[0])
            if self.lost and not self._kept:
                lost, self.lost = self.lost, 0
                self._keep(_encode({"event": "log_lines_lost", "level": "error", "lines": lost}) + b"\n")

    def _takes_some(self) -> bool:
        """Also of a reader that has gone, or of a file on a full disk: the write says so."""
        return bool(self._poll.poll(0))

    def _write_some(self, line: bytes) -> None:
        written = os.write(self._fd, line[:WRITE_BYTES])
        self._kept_bytes -= written
        if written == len(line):
            self._kept.popleft()
        else:
            self._kept[0] = line[written:]


class _Loggers:
    """What structlog asks for a logger: all of them write to the same lines."""

    def __init__(self, lines: Lines) -> None:
        self._logger = _Logger(lines)

    def __call__(self, *_: object) -> _Logger:
        return self._logger


class _Logger:
    """A structlog logger: one method for each level, all the same."""

    def __init__(self, lines: Lines) -> None:
        self._lines = lines

    def msg(self, message: str | bytes) -> None:
        """A rendered event."""
        self._lines.write((message if isinstance(message, bytes) else message.encode("utf-8", "replace")) + b"\n")

    debug = info = warning = warn = error = critical = exception = fatal = log = msg
