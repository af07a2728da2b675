"""Keys of `cortex.toml` that earlier releases had. Each is a warning for one release, so that an upgrade starts."""

from __future__ import annotations

from catalogue.toml.faults import Fault
from catalogue.toml.positions import KeyPath
from catalogue.toml.validate import Document

__all__ = ["REMOVED_KEYS", "take_out"]

REMOVED_KEYS: dict[KeyPath, str] = {
    # Removed in 0.2. It had one value, "lru", and nothing read it.
    ("eviction", "strategy"): "has no effect any more: the least recently used model is always evicted first",
}
"""Each key with the text of its warning."""


def take_out(document: Document) -> list[Fault]:
    """Take the removed keys out of the document, with a warning for each."""
    warnings = []
    for key, message in REMOVED_KEYS.items():
        *tables, name = key
        table: object = document.data
        for part in tables:
            table = table.get(part) if isinstance(table, dict) else None
        if isinstance(table, dict) and name in table:
            del table[name]
            warnings.append(document.fault(key, message, "remove the key; the next release refuses it"))
    return warnings
