"""Fixtures of the daemon's tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def tls_files() -> tuple[Path, Path]:
    """A certificate for localhost, and its key."""
    folder = Path(__file__).parents[2] / "fakes/tls"
    return folder / "cert.pem", folder / "key.pem"
