"""Keys with secrets, in a table as the store's."""

from __future__ import annotations

from hashlib import sha256

from gateway.access.admission import Access
from gateway.access.keys.key import Key
from gateway.access.keys.key_table import KeyTable, StoredKey
from gateway.access.keys.secret import new_secret


class KnownKeys:
    """Keys by name; `secrets` has what their clients send."""

    def __init__(self, *keys: Key, mode: str = "keys") -> None:
        self.secrets = {key.name: new_secret(key.id) for key in keys}
        self.table = KeyTable()
        self.table.replace(StoredKey(key, sha256(self.secrets[key.name].encode()).digest()) for key in keys)
        self.access = Access(self.table, mode=mode)

    def bearer(self, name: str) -> str:
        """The header line of the key's client."""
        return f"authorization: Bearer {self.secrets[name]}"
