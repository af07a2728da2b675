"""How the command line draws: a console and tables that take names as they are."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["console", "entry", "table"]


def console(*, stderr: bool = False) -> Console:
    """Without markup: names come from operators and neurons, and `[/x]` is a name, not a tag."""
    return Console(stderr=stderr, soft_wrap=stderr, markup=False, emoji=False, highlight=False)


def table(title: str, *columns: str) -> Table:
    """No lines, the title on the left; what is too long goes on below itself."""
    drawn = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        drawn.add_column(column, overflow="fold")
    return drawn


def entry(head: str, *lines: str) -> Text:
    """Something of a log: what everything is about in one line, and below it what there is to say of it."""
    told = Text(head, style="bold")
    for line in lines:
        told.append(f"\n    {line}", style="not bold")
    return told
