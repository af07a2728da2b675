"""Its being here puts `tests/` on the import path, so that tests can say `from fakes.neuron import FakeNeuron`.

`--real` adds tests/real, which needs the extra `real`: engines that are none of ours. `--clients` adds
tests/clients/installed, which needs what scripts/install-clients installs: clients that are none of ours.
`--write-docs` is for the tests that hold a table of docs/ to what they observe: they write it instead. Without xdist,
which would have several write.
"""

from __future__ import annotations

import signal
from pathlib import Path

import hypothesis
import pytest

# What fails once fails every time: a find at random is for who goes looking, not for who lands next. And nothing fails
# for being slow. Who goes looking says `--hypothesis-profile explore`.
hypothesis.settings.register_profile(
    "repeat", derandomize=True, deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.register_profile(
    "explore", hypothesis.settings.get_profile("repeat"), derandomize=False, max_examples=2000
)
hypothesis.settings.load_profile("repeat")

NEEDS = {"real": "--real", "clients/installed": "--clients"}  # folder: the option without which it is left out


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run tests/real, against real engines")
    parser.addoption("--clients", action="store_true", help="also run tests/clients/installed, with real clients")
    parser.addoption("--write-docs", action="store_true", help="write what the tests observe into the tables of docs/")


def pytest_configure() -> None:
    """Processes that tests start are to hear Ctrl-C, also where a shell has put us in the background, deaf to it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    here = Path(__file__).parent
    left_out = (folder for folder, option in NEEDS.items() if not config.getoption(option))
    return True if any(collection_path.is_relative_to(here / folder) for folder in left_out) else None
