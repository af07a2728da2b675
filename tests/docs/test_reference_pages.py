"""The reference pages are complete."""

import re
from typing import get_args

import commands_page
import settings_page
from fakes.console_page import TOP

from gateway.cli.main import COMMANDS
from gateway.server.health.problems import ProblemCode


def test_settings_page_is_what_the_schemas_say():
    """`scripts/settings_page.py` writes it."""
    assert settings_page.PAGE.read_text() == settings_page.page(), "run scripts/settings_page.py"


def test_every_key_of_a_file_is_on_the_settings_page():
    """The script leaves none out: each key of a commented example is there."""
    page = settings_page.PAGE.read_text()
    for _, example in settings_page.FILES.values():
        keys = re.findall(r"^(?:# )?(\w+) = ", (TOP / example).read_text(), re.MULTILINE)
        assert keys
        assert [key for key in keys if f"`{key}`" not in page] == []


def test_commands_page_is_what_the_commands_say():
    """`scripts/commands_page.py` writes it."""
    assert commands_page.PAGE.read_text() == commands_page.page(), "run scripts/commands_page.py"


def test_every_command_has_its_exit_codes():
    """A new command needs a row."""
    page = (TOP / "docs" / "reference" / "exit-codes.md").read_text()
    assert [name for name in COMMANDS if f"`cortex {name}`" not in page] == []


def test_every_problem_is_on_the_page_for_monitoring():
    """A new problem needs a row that says what to do."""
    page = (TOP / "docs" / "how-to" / "monitor.md").read_text()
    codes = get_args(ProblemCode)
    assert len(codes) >= 8
    assert [code for code in codes if f"`{code}`" not in page] == []
