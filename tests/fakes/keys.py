"""Keys for tests of whole gateways."""

from __future__ import annotations

from functools import partial

from gateway.access.keys.key_changes import KeyChanges
from gateway.server.gateway import Gateway


async def new_key(gateway: Gateway, name: str, **fields: object) -> str:
    """Create a key in the gateway's store and put it in force; returns its secret."""
    parts = gateway.access_parts
    created = await parts.store.run(partial(KeyChanges().create, fields={"name": name, **fields}))
    await parts.refresh.refresh()
    return created["secret"]


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}
