"""The commands that the pages show exist, with the options shown."""

import re
import shlex
from pathlib import Path

import click
import pytest

from gateway.cli import main

ROOT = Path(__file__).parent.parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "deploy" / "README.md"]
SHOWN = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?(cortex (?!demo:).+)$", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|mailto:)([^)\s]+)\)")
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


def test_pages_show_every_command():
    """Users cannot find a command that no page mentions."""
    text = "\n".join(page.read_text() for page in PAGES)
    for name, command in main.main.commands.items():
        assert f"cortex {name}" in text, name
        for sub in getattr(command, "commands", {}):
            assert re.search(rf"cortex {name}[^\n]*\b{sub}\b", text), f"{name} {sub}"


def test_links_between_pages_lead_somewhere():
    """Files, and headings within them."""
    broken = []
    for page in PAGES:
        for target in LINK.findall(page.read_text()):
            path, _, anchor = target.partition("#")
            file = page if not path else (page.parent / path).resolve()
            if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors(file)):
                broken.append(f"{page.name}: {target}")
    assert broken == []


def anchors(page):
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
