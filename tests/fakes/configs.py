"""A `cortex.toml` for tests, and its faults."""

from __future__ import annotations

import pytest

from catalogue.toml.faults import FaultyFile
from gateway.config.load import load


def write_config(directory, text):
    """Write a cortex.toml there and return its path."""
    path = directory / "cortex.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def faults(path, environ=None):
    """Every fault for which these settings are refused: line, key, message and hint."""
    with pytest.raises(FaultyFile) as caught:
        load(path, environ or {})
    return [(fault.line, fault.key, fault.message, fault.hint) for fault in caught.value.faults]
