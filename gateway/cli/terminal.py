"""Printing to the terminal: consoles and tables that print names as they are but for control characters, and JSON."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Self

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderHook, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from gateway.telemetry.printable import one_line, printable, printable_json

__all__ = ["HASH_DIGITS", "Progress", "console", "counted", "entry", "print_error", "print_json", "table"]

HASH_DIGITS = 10  # of a file's hash; enough to tell versions apart
SHOWN_AFTER_S = 2.0  # what takes less needs no progress
FILE_WIDTH = 10_000  # columns; a file or a pipe has no width


def console() -> Console:
    """A console without markup: names come from operators and neurons, and `[/x]` is a name, not a tag.

    Lines are folded only on a terminal, or if `COLUMNS` is set. Otherwise `cortex status | grep MODEL` would miss a
    name that is folded in the middle.
    """
    out = Console(markup=False, emoji=False, highlight=False)
    out.push_render_hook(_EscapeHook())
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = FILE_WIDTH
    return out


class _EscapeHook(RenderHook):
    """Escapes control characters in everything that a console prints: the texts come from clients and neurons."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """As in Rich: what is printed in place of `renderables`."""
        return [_Escaped(renderable) for renderable in renderables]


class _Escaped:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            is_safe = segment.control or segment.text.isprintable()
            yield segment if is_safe else Segment(printable(segment.text), segment.style)


class Progress:
    """A line on a terminal about what goes on, from the third second on; none in a pipe.

    Args:
        report: Prints a line that stays.
    """

    def __init__(self, report: Callable[[str], object]) -> None:
        self._report = report
        self._began = time.monotonic()
        self._is_shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def report(self, text: str) -> None:
        """Print a line that stays."""
        self._clear()
        self._report(printable(text))

    def show(self, what: str, elapsed_s: float | None = None, expected_s: float | None = None) -> None:
        """Show how long something has taken and, if that is known, how long it may take at most from now on."""
        took_s = time.monotonic() - self._began
        if took_s < SHOWN_AFTER_S or not sys.stderr.isatty():
            return
        elapsed = took_s if elapsed_s is None else elapsed_s
        left = "" if expected_s is None else f", at most {max(0.0, expected_s - elapsed):.0f} s left"
        sys.stderr.write(f"\r\x1b[2K{one_line(what)}: {elapsed:.0f} s{left}")
        sys.stderr.flush()
        self._is_shown = True

    def _clear(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._is_shown = False


def print_error(text: str) -> None:
    """Print a line on stderr, if it takes one: a full disk must not keep the gateway from starting."""
    with contextlib.suppress(OSError):
        click.echo(printable(text), err=True)


def print_json(value: object) -> None:
    """Print JSON on stdout, for programs."""
    click.echo(printable_json(json.dumps(value, indent=2, ensure_ascii=False)))


def table(title: str, *columns: str) -> Table:
    """A table without lines. Long cells fold; those of the first column, which has the names, last."""
    heading = Text(title, style="bold", no_wrap=True, overflow="ignore")
    result = _Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    return result


class _Table(Table):
    """Does not fold its first column while that leaves half of the width to the others. A cell is one line."""

    def add_row(self, *cells: RenderableType | None, **options: Any) -> None:
        """As in Rich."""
        super().add_row(*(one_line(cell) if isinstance(cell, str) else cell for cell in cells), **options)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = self.columns[0]
        longest = max((cell_len(name) for name in names.cells if isinstance(name, str)), default=0)
        names.no_wrap = 2 * longest <= options.max_width
        return super().__rich_console__(console, options)


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun: `1 alias`, `2 aliases`."""
    return f"{number} {noun if number == 1 else plural or f'{noun}s'}"


def entry(head: str, *lines: str) -> Text:
    """An entry of a list: a bold line, and its details indented below."""
    text = Text(one_line(head), style="bold")
    for line in lines:
        text.append(f"\n    {one_line(line)}", style="not bold")
    return text
