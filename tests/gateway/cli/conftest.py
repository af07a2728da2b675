"""Operators with a gateway and without one, and files for commands."""

import shutil

import pytest
from fakes.cli_files import write
from fakes.operator import LARGE, Operator, running_demo, wait_until

from gateway.aliases.files.file_history import digest_of


@pytest.fixture(scope="package")
def demo_operator(tmp_path_factory):
    """A demo gateway, which all tests of this folder share."""
    with running_demo(tmp_path_factory.mktemp("demo")) as operator:
        yield operator


@pytest.fixture
def operator(demo_operator):
    """That gateway, with the models.toml that the demo wrote before and after the test."""
    original = demo_operator.models.read_bytes()
    yield demo_operator
    if demo_operator.models.read_bytes() != original:
        demo_operator.edit(original)
        demo_operator.done("alias", "set", "helexa/large", LARGE)  # changes nothing, so it waits for nothing
    # The next test must not see a swap or an audit line of this one.
    wait_until(lambda: demo_operator.in_force() == digest_of(original) and not demo_operator.health().get("swaps"))
    wait_until(lambda: demo_operator.lines()[-1]["file"] == digest_of(original))


@pytest.fixture
def alone(tmp_path, demo_operator):
    """The same file, and an address where no gateway answers."""
    shutil.copy(demo_operator.models, tmp_path / "models.toml")
    config = demo_operator.config.read_text()
    for key in ("listen", "metrics_listen"):
        config = "\n".join(
            f'{key} = "127.0.0.1:{9 if key == "listen" else 10}"' if line.startswith(f"{key} =") else line
            for line in config.splitlines()
        )
    (tmp_path / "cortex.toml").write_text(config)
    return Operator(tmp_path, demo_operator.key)


@pytest.fixture
def folder(tmp_path):
    """A folder with a cortex.toml for free ports; each test writes its own models.toml."""
    write(tmp_path, "models = []\n")
    return tmp_path
