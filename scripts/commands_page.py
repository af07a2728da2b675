"""Writes docs/reference/commands.md from the commands themselves. Usage: commands_page.py"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from gateway.cli.main import COMMANDS, main

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "commands.md"
HEAD = """# Commands

Every command and option, as `--help` shows them; `scripts/commands_page.py` writes this page. The options with which
commands find a gateway and its files are the same everywhere, so they are here once:

| option | |
|---|---|
"""
SHARED = ("config", "url", "token", "api", "endpoint", "admin", "ca")  # by the name of the parameter


def page() -> str:
    """The whole page."""
    found = list(_commands())
    shared = {option.name: option for _, command in found for option in _options(command) if option.name in SHARED}
    parts = [HEAD + "\n".join(_row(option) for option in shared.values()) + "\n"]
    parts += [_section(name, command) for name, command in found]
    return "\n".join(parts)


def _commands() -> Iterator[tuple[str, click.Command]]:
    """Each command that does something, with its full name."""
    for name in COMMANDS:
        command = main.commands[name]
        if isinstance(command, click.Group):
            yield from ((f"cortex {name} {sub}", command.commands[sub]) for sub in sorted(command.commands))
        else:
            yield f"cortex {name}", command


def _options(command: click.Command) -> list[click.Option]:
    return [each for each in command.params if isinstance(each, click.Option) and not each.hidden]


def _section(name: str, command: click.Command) -> str:
    arguments = " ".join(
        each.make_metavar(click.Context(command)) for each in command.params if isinstance(each, click.Argument)
    )
    lines = [
        f"## {name}\n",
        f"`{name}{' ' if arguments else ''}{arguments}`\n",
        inspect.cleandoc(command.help or "") + "\n",
    ]
    own = [option for option in _options(command) if option.name not in SHARED]
    if own:
        lines += ["| option | |", "|---|---|", *map(_row, own), ""]
    return "\n".join(lines)


def _row(option: click.Option) -> str:
    metavar = "" if option.is_flag or option.count else f" {option.make_metavar(click.Context(main))}"
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    text = (option.help or "").replace("|", "\\|")
    default = option.show_default if isinstance(option.show_default, str) else option.default
    shown = f" Default: {default}." if option.show_default and default is not None else ""
    return f"| {names}{metavar.replace('|', chr(92) + '|')} | {text}{shown} |"


if __name__ == "__main__":
    PAGE.write_text(page())
