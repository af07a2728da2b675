"""Structured logs on stderr: JSON for machines, a readable form for a terminal.

No request may wait for the log or fail because of it. So writes to stderr never block. Lines that stderr does not take
are kept up to a limit; lines beyond it, or that cannot be written at all (a full disk, a closed pipe), are counted, and
a `log_lines_lost` event reports the number once lines can be written again.

While `write_in_batches` runs, lines below `warning` wait up to `BATCH_S` and are written together: a request then costs
no system call for its line. What waits is written when it ends; only a killed process loses it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Collection
from functools import partial
from io import StringIO
from typing import Any, Protocol, TextIO

import msgspec
import structlog
import trio
from structlog._config import _CONFIG  # `get_config` makes a dictionary of it, which each request would pay

from gateway.config.settings import LogSettings
from gateway.telemetry.printable import one_line, printable, printable_json
from gateway.telemetry.recent_log import recent_log

__all__ = ["LogWriter", "configure", "write_in_batches", "write_info"]

BATCH_S = 0.1
BATCH_BYTES = 32 * 1024  # more than this does not wait

_LEVELS = ("debug", "info", "warning", "error", "critical")  # the least severe first

KEPT_BYTES = 1024 * 1024  # about two thousand requests
# A pipe that polls as writable takes this much without blocking (pipe(7), PIPE_BUF); sockets take more.
WRITE_BYTES = 4096


def configure(settings: LogSettings) -> None:
    """Set up structlog for the process. Logs go to stderr; stdout is for the output of commands."""
    stderr = sys.stderr.fileno() if sys.stderr else os.open(os.devnull, os.O_WRONLY)  # no stderr if started with 2>&-
    is_terminal = os.isatty(stderr)
    as_json = settings.format == "json" or (settings.format == "auto" and not is_terminal)
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        recent_log,
    ]
    least = _LEVELS.index(settings.level)
    shown = min(least, _LEVELS.index("info"))  # the console has these events, whatever the log leaves out
    if shown < least:
        shared.append(partial(_drop, _LEVELS[shown:least]))
    writer = LogWriter(stderr)
    _writers[:] = [writer]
    processors = [*shared, *(_json() if as_json else _console(colors=is_terminal))]
    _direct.processors = processors if as_json and shown == least else None
    _direct.renderer = processors[-1]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[_LEVELS[shown].upper()]),
        logger_factory=_LoggerFactory(writer),
        cache_logger_on_first_use=True,
    )
    # Libraries use the standard library's logging: their warnings and errors go to the same stream.
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LibraryFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _drop(
    levels: Collection[str], _: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Drop the events of these levels, each of which has a method of its own."""
    if method in levels:
        raise structlog.DropEvent
    return event


_writers: list[LogWriter] = []
"""The writer of this process's log, once `configure` was called."""


class _DirectWay:
    """`write_info` writes a line itself if `processors` are structlog's, and still end in `renderer`.

    A test may configure structlog anew, or change the list in place (`structlog.testing.capture_logs`).
    """

    processors: list[structlog.typing.Processor] | None = None
    renderer: structlog.typing.Processor | None = None
    second = ""  # of the last line, in Unix time
    date = ""  # the same, formatted


_direct = _DirectWay()


class InfoEvent(Protocol):
    """A structure that msgspec encodes. Its last fields are the ones that it has here, in this order."""

    event: str
    level: str
    timestamp: str

    def fields(self) -> dict[str, Any]:
        """What the line has, by name."""
        ...


def write_info(logger: Any, event: InfoEvent) -> None:
    """Write an event of level `info` whose values are plain.

    The line is the same as `logger.info` writes. Every request has one, and structlog's way to it is 40 calls. Any
    other configuration (a terminal, a test) goes that way.
    """
    ours = _direct.processors
    if ours is None or ours is not _CONFIG.default_processors or ours[-1] is not _direct.renderer:
        fields = event.fields()
        logger.info(fields.pop("event"), **{name: fields[name] for name in fields if name not in _ADDED})
        return
    event.timestamp = _timestamp()
    line = _encode(event) + b"\n"
    _writers[0].write(line, urgent=False)
    recent_log.keep(line)


_ADDED = frozenset({"level", "timestamp"})  # by processors


def _timestamp() -> str:
    """The time as structlog writes it, with one format of the date per second: that takes a fifth of the time."""
    digits = str(time.time_ns() // 1000)
    second = digits[:-6]
    if second != _direct.second:
        _direct.second, _direct.date = second, time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(int(second)))
    return _direct.date + digits[-6:] + "Z"


async def write_in_batches(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Let lines below `warning` wait for each other, until cancelled."""
    writers = list(_writers)
    for writer in writers:
        writer.batches = True
    task_status.started()
    try:
        while True:
            await trio.sleep(BATCH_S)
            for writer in writers:
                writer.flush()
    finally:
        for writer in writers:
            writer.batches = False
            writer.flush()


class _LibraryFormatter(logging.Formatter):
    """Formats records of libraries, whose texts may quote what clients and neurons sent."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def _json() -> list[structlog.typing.Processor]:
    return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(serializer=_encode)]


def _console(*, colors: bool) -> list[structlog.typing.Processor]:
    return [
        _flatten_values,
        _escape_values,
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=_write_traceback),
    ]


def _flatten_values(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Write lists and objects as text for people, not as Python does. `exc_info` is the renderer's."""
    return {
        key: _text(value) if isinstance(value, dict | list | tuple) and key != "exc_info" else value
        for key, value in event.items()
    }


def _text(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key}={_text(part)}" for key, part in value.items() if part is not None)
    return ", ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _escape_values(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Escape texts. The renderer shows every other value by its `repr`, which escapes by itself."""
    return {key: one_line(value) if isinstance(value, str) else value for key, value in event.items()}


def _write_traceback(out: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    traceback = StringIO()
    structlog.dev.plain_traceback(traceback, exc_info)
    out.write(printable(traceback.getvalue()))


def _encode(event: dict[str, Any] | InfoEvent, **_: object) -> bytes:
    try:
        line = _encoder.encode(event)
        return line if line.isascii() else printable_json(line.decode()).encode()
    except UnicodeEncodeError:  # a file name need not be UTF-8
        return json.dumps(event if isinstance(event, dict) else event.fields(), default=str).encode()


_encoder = msgspec.json.Encoder(enc_hook=str)


class LogWriter:
    """Writes lines to a file descriptor without blocking. Raises nothing.

    Attributes:
        batches: Whether lines that are not urgent wait until the next `flush`.
        lost: How many lines were lost since the last report.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._kept: deque[bytes] = deque()
        self._kept_bytes = 0
        self.lost = 0
        self.batches = False

    def write(self, line: bytes, *, urgent: bool = True) -> None:
        """Write a line, including its line end, after the lines that still wait."""
        size = self._kept_bytes + len(line)
        if size > KEPT_BYTES:
            self.lost += 1
        else:
            self._kept.append(line)
            self._kept_bytes = size
        if urgent or not self.batches or self._kept_bytes > BATCH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Write the lines that wait, as many as stderr takes."""
        if self.batches and len(self._kept) > 1 and len(self._kept[0]) + len(self._kept[1]) <= WRITE_BYTES:
            self._join()
        try:
            self._flush()
        except OSError:
            self.lost += sum(piece.count(b"\n") for piece in self._kept)
            self._kept.clear()
            self._kept_bytes = 0

    def _join(self) -> None:
        """Put waiting lines together, as many as one write takes: a pipe then gets them whole."""
        lines = b"".join(self._kept)
        self._kept.clear()
        start = 0
        while start < len(lines):
            end = lines.rfind(b"\n", start, start + WRITE_BYTES) + 1 or lines.find(b"\n", start) + 1 or len(lines)
            self._kept.append(lines[start:end])
            start = end

    def _keep(self, line: bytes) -> None:
        self._kept.append(line)
        self._kept_bytes += len(line)

    def _flush(self) -> None:
        while self._kept and self._is_writable():
            self._write_some(self._kept[0])
            if self.lost and not self._kept:
                lost, self.lost = self.lost, 0
                self._keep(_encode({"event": "log_lines_lost", "level": "error", "lines": lost}) + b"\n")

    def _is_writable(self) -> bool:
        """True also for a closed pipe and a full disk: the write then fails."""
        return bool(self._poll.poll(0))

    def _write_some(self, line: bytes) -> None:
        written = os.write(self._fd, line[:WRITE_BYTES])
        self._kept_bytes -= written
        if written == len(line):
            self._kept.popleft()
        else:
            self._kept[0] = line[written:]


class _LoggerFactory:
    """Returns one logger for all names."""

    def __init__(self, writer: LogWriter) -> None:
        self._logger = _Logger(writer)

    def __call__(self, *_: object) -> _Logger:
        return self._logger


class _Logger:
    """A structlog logger, whose methods for all levels are the same."""

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer

    def msg(self, message: str | bytes) -> None:
        """Write a rendered event that can wait for others."""
        self._writer.write(_line(message), urgent=False)

    debug = info = msg

    def warning(self, message: str | bytes) -> None:
        """Write a rendered event now."""
        self._writer.write(_line(message))

    warn = error = critical = exception = fatal = log = warning


def _line(message: str | bytes) -> bytes:
    return (message if isinstance(message, bytes) else message.encode("utf-8", "replace")) + b"\n"
