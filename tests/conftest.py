"""This file puts `tests/` on the import path, so that tests can write `from fakes.neuron import FakeNeuron`.

`--real` adds tests/real, with real engines; it needs the extra `real`. `--clients` adds tests/clients/installed, with
real clients; it needs scripts/install-clients. `--postgres` runs the tests of the store on PostgreSQL as well as on
SQLite; it needs Debian's package postgresql. `--browser` adds tests/browser, the console in Chromium; it needs the
extra `browser` and scripts/install-browser. With `--write-docs`, the tests that compare a table of docs/ with their
observations write it instead. Use it without xdist, whose workers would all write.
"""

from __future__ import annotations

import gc
import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog
from fakes.postgres import PostgresServer

from gateway.files import state_directory

# Runs are repeatable: random findings must not fail an unrelated change. And no example fails
# for being slow. To search for new findings, use `--hypothesis-profile explore`.
hypothesis.settings.register_profile(
    "repeat", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("repeat"), derandomize=False, max_examples=2000
)
hypothesis.settings.load_profile("repeat")

NEEDS = {
    "real": "--real",
    "clients/installed": "--clients",
    "browser": "--browser",
}  # folder: the option that includes it


_state_numbers = itertools.count()


@pytest.fixture(autouse=True)
def _no_state_of_the_machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A gateway without a models.toml keeps its state in /var/lib/cortex; in a test, in a directory of that test.

    With a patch of its own: the fixture `monkeypatch` would then be undone after the other fixtures of each test.
    """
    directory = tmp_path_factory.getbasetemp() / f"state-{next(_state_numbers)}"  # created only if it is needed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_directory, "SYSTEM_DIRECTORY", directory)
        yield


@pytest.fixture
def fresh_loggers() -> Iterator[None]:
    """For tests that capture logs: loggers that were made meanwhile must not outlive the capture."""
    yield
    structlog.reset_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run tests/real, against real engines")
    parser.addoption("--clients", action="store_true", help="also run tests/clients/installed, with real clients")
    parser.addoption("--postgres", action="store_true", help="also run the tests of the store on PostgreSQL")
    parser.addoption("--browser", action="store_true", help="also run tests/browser, in Chromium")
    parser.addoption("--write-docs", action="store_true", help="write what the tests observe into the tables of docs/")


def pytest_configure() -> None:
    """Make processes that tests start handle Ctrl-C, even if a shell started pytest in the background with SIGINT
    ignored.
    """
    os.environ.pop("COLUMNS", None)  # xdist sets it in its workers; what commands print would be folded there
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    here = Path(__file__).parent
    left_out = (folder for folder, option in NEEDS.items() if not config.getoption(option))
    if any(collection_path.is_relative_to(here / folder) for folder in left_out):
        return True
    # The second stage of scripts/pytest would spend most of its time on files without such tests.
    only_measured = config.getoption("markexpr") == "measured" and collection_path.suffix == ".py"
    return True if only_measured and "measured" not in collection_path.read_text() else None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--postgres"):
        items[:] = [item for item in items if item.get_closest_marker("postgres") is None]
    # First those that take long, so that at the end no worker is left alone with one.
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_collection_finish() -> None:
    """Keep what exists now out of garbage collections: a full one would take 0.3 s for the modules and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A PostgreSQL server, which is started when a test first needs it."""
    with PostgresServer.running() as server:
        yield server


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgres)])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a store that does not exist yet (SQLite) or has no tables: each test runs on both."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store.db'}"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()
