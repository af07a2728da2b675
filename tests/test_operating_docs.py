"""The commands that the pages show exist, with the options shown."""

import re
import shlex
from pathlib import Path

import click
import pytest

from gateway.cli import main

ROOT = Path(__file__).parent.parent
OPERATING = ROOT / "docs" / "operating.md"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "deploy" / "README.md"]
SHOWN = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(cortex (?!demo:).+)$", re.MULTILINE)
SHELL = re.compile(r" [|>&;] ?")  # what follows is not the command's
FENCED = re.compile(r"^```(?:console|sh|bash)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page):
    """Every command line in a page's shell blocks."""
    lines = [line for block in FENCED.findall(page.read_text()) for line in SHOWN.findall(block)]
    return [shlex.split(SHELL.split(line)[0], comments=True)[1:] for line in lines]


def parse(arguments):
    """Parse as click does, down to the last subcommand, without running it. Raises UsageError."""
    command, context = main.main, main.main.make_context("cortex", list(arguments))
    while isinstance(command, click.Group):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
    return context


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_shown_is_valid(page, tmp_path, monkeypatch):
    """A renamed option must be renamed in its page."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CORTEX_ADMIN__TOKEN", "x")
    (tmp_path / "wanted.toml").touch()  # for `cortex plan`

    for arguments in commands(page):
        parse(arguments)


def test_unknown_command_is_found():
    """The test above can fail."""
    for wrong in (["alias", "sett", "a", "b"], ["alias", "set", "a", "b", "--weigth", "5"], ["plan", "nowhere.toml"]):
        with pytest.raises(click.UsageError):
            parse(wrong)


def test_day_shows_every_command_for_aliases():
    """The operator's page has every command."""
    text = OPERATING.read_text()

    assert len(commands(OPERATING)) >= 15
    assert [name for name in main.main.commands["alias"].commands if f"cortex alias {name}" not in text] == []
    assert [name for name in main.main.commands["audit"].commands if f"cortex audit {name}" not in text] == []
