"""One request's reservation around a block, as a request's account makes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

from gateway.access.limits.amounts import NOTHING, AmountTuple
from gateway.access.limits.key_use import KeyUse


@contextmanager
def reserved(use: KeyUse, estimate: AmountTuple = NOTHING) -> Iterator[SimpleNamespace]:
    """Reserve, and settle at the end with what the block has set as `used`."""
    reservation, started_at = SimpleNamespace(used=NOTHING), use._unix_time()
    taken = use.reserve(estimate)
    try:
        yield reservation
    finally:
        use.settle(taken, reservation.used, started_at)
