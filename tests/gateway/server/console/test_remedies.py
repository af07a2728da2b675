"""What the overview tells an operator to do about a problem."""

from __future__ import annotations

from typing import get_args

import pytest

from gateway.server.console.assets import load_assets
from gateway.server.health.problems import ProblemCode


@pytest.mark.parametrize("code", get_args(ProblemCode))
def test_every_problem_has_a_remedy(code):
    """A text of its own, not the one for unknown problems."""
    assert f'case "{code}":' in load_assets().files["lib/remedies.js"].body.decode()
