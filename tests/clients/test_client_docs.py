"""docs/clients.md: its examples work, and its versions are those that the tests run.

The blocks of clients outside this environment are run by tests/clients/installed/test_examples_of_docs.py.
"""

import json
import re
import sys

import pytest
import trio
from fakes.client_docs import BLOCKS, PAGE
from fakes.process import environment
from fakes.scene import TOP

OURS = [block for block in BLOCKS if block.name in {"python-openai", "python-anthropic"}]


def pinned(path):
    return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", path.read_text(), re.MULTILINE))


def named_by_npm(folder):
    return json.loads((TOP / "tests" / "clients" / folder / "package.json").read_text())["dependencies"]


@pytest.mark.parametrize("block", OURS, ids=lambda block: block.name)
async def test_example_of_the_official_sdks_runs(cortex, tmp_path, block):
    """As a script."""
    path = block.written(tmp_path, cortex.url)
    done = await trio.run_process([sys.executable, str(path)], capture_stdout=True, env=environment())

    assert "Tbilisi" in done.stdout.decode()


def test_both_official_sdks_have_an_example():
    """So that the test above tests something."""
    assert len(OURS) == 2


def test_versions_on_the_page_are_the_pinned_ones():
    """Each name of the table, where it is pinned; and no client that the tests run is missing."""
    listed = {
        (name, version)
        for name, version in re.findall(r"^\| `([^`]+)`[^|]*\| ([\d.]+) \|", PAGE.read_text(), re.MULTILINE)
    }
    sdks, frameworks = pinned(TOP / "constraints.txt"), pinned(TOP / "constraints-clients.txt")
    programs = pinned(TOP / "constraints-programs.txt")
    npm = named_by_npm("js") | named_by_npm("programs")
    wanted = re.findall(r"^([a-z-]+)", (TOP / "tests" / "clients" / "requirements.txt").read_text(), re.MULTILINE)

    assert listed == {
        *((name, sdks[name]) for name in ("openai", "anthropic")),
        *((name, frameworks[name]) for name in {*wanted, "openai"} - {"schemathesis"}),
        *((name, version) for name, version in npm.items() if name != "zod"),
        ("aider-chat", programs["aider-chat"]),
    }
