"""Its being here puts `tests/` on the import path, so that tests can say `from fakes.neuron import FakeNeuron`.

`--real` adds tests/real, which needs the extra `real`: engines that are none of ours. `--write-docs` is for the tests
that hold a table of docs/ to what they observe: they write it instead. Without xdist, which would have several write.
"""

from __future__ import annotations

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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run tests/real, against real engines")
    parser.addoption("--write-docs", action="store_true", help="write what the tests observe into the tables of docs/")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    real = Path(__file__).parent / "real"
    return True if collection_path.is_relative_to(real) and not config.getoption("--real") else None
