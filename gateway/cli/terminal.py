"""Printing to the terminal: consoles and tables that print names unchanged, and JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Self

import click
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["HASH_DIGITS", "Progress", "console", "entry", "print_error", "print_json", "table"]

HASH_DIGITS = 10  # of a file's hash; enough to tell versions apart
SHOWN_AFTER_S = 2.0  # what takes less needs no progress
FILE_WIDTH = 10_000  # columns; a file or a pipe has no width


def console() -> Console:
    """A console without markup: names come from operators and neurons, and `[/x]` is a name, not a tag.

    Lines are folded only on a terminal, or if `COLUMNS` is set. Otherwise `cortex status | grep MODEL` would miss a
    name that is folded in the middle.
    """
    out = Console(markup=False, emoji=False, highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = FILE_WIDTH
    return out


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
        self._report(text)

    def show(self, what: str, elapsed_s: float | None = None, expected_s: float | None = None) -> None:
        """Show how long something has taken and, if that is known, how long it may take at most from now on."""
        took_s = time.monotonic() - self._began
        if took_s < SHOWN_AFTER_S or not sys.stderr.isatty():
            return
        elapsed = took_s if elapsed_s is None else elapsed_s
        left = "" if expected_s is None else f", at most {max(0.0, expected_s - elapsed):.0f} s left"
        sys.stderr.write(f"\r\x1b[2K{what}: {elapsed:.0f} s{left}")
        sys.stderr.flush()
        self._is_shown = True

    def _clear(self) -> None:
        if self._is_shown:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
            self._is_shown = False


def print_error(text: str) -> None:
    """Print a line on stderr."""
    click.echo(text, err=True)


def print_json(value: object) -> None:
    """Print JSON on stdout, for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(title: str, *columns: str) -> Table:
    """A table without lines. Long cells fold; those of the first column, which has the names, last."""
    heading = Text(title, style="bold", no_wrap=True, overflow="ignore")
    result = _Table(title=heading, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        result.add_column(column, overflow="fold")
    return result


class _Table(Table):
    """Does not fold its first column while that leaves half of the width to the others."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = self.columns[0]
        longest = max((cell_len(name) for name in names.cells if isinstance(name, str)), default=0)
        names.no_wrap = 2 * longest <= options.max_width
        return super().__rich_console__(console, options)


def entry(head: str, *lines: str) -> Text:
    """An entry of a list: a bold line, and its details indented below."""
    text = Text(head, style="bold")
    for line in lines:
        text.append(f"\n    {line}", style="not bold")
    return text
