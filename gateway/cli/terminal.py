"""How the command line draws: a console and tables that take names as they are."""

from __future__ import annotations

import os

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

__all__ = ["console", "entry", "table"]

FILE_WIDTH = 10_000  # columns; a file or a pipe has no edge


def console(*, stderr: bool = False) -> Console:
    """Without markup: names come from operators and neurons, and `[/x]` is a name, not a tag.

    Only a terminal has a width to keep within, or who names one in `COLUMNS`: else `cortex status | grep MODEL` would
    look for a name that was folded in the middle.
    """
    out = Console(stderr=stderr, soft_wrap=stderr, markup=False, emoji=False, highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out.width = FILE_WIDTH
    return out


def table(title: str, *columns: str) -> Table:
    """No lines, the title on the left; what is too long goes on below itself, the names in the first column last."""
    told = Text(title, style="bold", no_wrap=True, overflow="ignore")
    drawn = _Table(title=told, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    return drawn


class _Table(Table):
    """Keeps the names in its first column whole while that leaves the other columns half of the width."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names = self.columns[0]
        longest = max((cell_len(name) for name in names.cells if isinstance(name, str)), default=0)
        names.no_wrap = 2 * longest <= options.max_width
        return super().__rich_console__(console, options)


def entry(head: str, *lines: str) -> Text:
    """Something of a log: what everything is about in one line, and below it what there is to say of it."""
    told = Text(head, style="bold")
    for line in lines:
        told.append(f"\n    {line}", style="not bold")
    return told
