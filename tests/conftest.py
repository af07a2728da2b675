"""Its being here puts `tests/` on the import path, so that tests can say `from fakes.neuron import FakeNeuron`.

`--real` adds tests/real, which needs the extra `real`: engines that are none of ours.
"""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--real", action="store_true", help="also run tests/real, against real engines")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    real = Path(__file__).parent / "real"
    return True if collection_path.is_relative_to(real) and not config.getoption("--real") else None
