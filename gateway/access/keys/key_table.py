"""The keys of the store in memory, by which requests are checked: one dictionary look-up and one SHA-256."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from gateway.access.keys.key import Key
from gateway.access.keys.secret import id_of, is_mistyped
from gateway.errors import InvalidApiKey, ServiceUnavailable

__all__ = ["KeyTable", "StoredKey"]


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A key with what the store has of its secrets: SHA-256 digests.

    `old_digest` is that of the secret before the last rotation, valid until `old_until` in unix seconds. `end_streams`:
    the key was revoked, and its running requests end too.
    """

    key: Key
    digest: bytes
    old_digest: bytes | None = None
    old_until: float = 0.0
    end_streams: bool = False


class KeyTable:
    """Every key, revoked and expired ones too.

    Args:
        unix_time: Returns seconds since 1970.

    Attributes:
        unix_time: The same.
        is_loaded: Whether the keys were ever read. Until then a valid key looks like a wrong one.
        version: Grows with each `replace`: what was found before may hold no more.
    """

    def __init__(self, *, unix_time: Callable[[], float] = time.time) -> None:
        self.unix_time = unix_time
        self._by_id: Mapping[bytes, StoredKey] = {}
        self.is_loaded = False
        self.version = 0

    def replace(self, keys: Iterable[StoredKey]) -> None:
        """Put these keys in force, in one step."""
        self.is_loaded = True
        self._by_id = {stored.key.id.encode(): stored for stored in keys}
        self.version += 1

    def by_id(self, key_id: str) -> StoredKey | None:
        """The key with this id."""
        return self._by_id.get(key_id.encode())

    def keys(self) -> list[StoredKey]:
        """All keys, in the order of the store."""
        return list(self._by_id.values())

    def is_active(self, key: Key) -> bool:
        """Whether the key is neither revoked nor expired."""
        return key.revoked_at is None and (key.expires_at is None or key.expires_at > self.unix_time())

    def find(self, secret: bytes) -> Key:
        """The key with this secret, `ctx_…`.

        The time it takes does not depend on how much of a wrong secret is right: digests are compared, in constant
        time, and an unknown id costs a comparison too.

        Raises:
            InvalidApiKey: There is none, or it has expired or was revoked.
            ServiceUnavailable: The keys were not read yet.
        """
        return self.look_up(secret)[0]

    def look_up(self, secret: bytes) -> tuple[Key, float]:
        """As `find`, with the unix time from which on the secret is not valid, unless the table changes before."""
        stored = self._by_id.get(secret[4 : secret.find(b"_", 4)], _NO_KEY)
        digest = sha256(secret).digest()
        key, until = stored.key, math.inf
        if not compare_digest(digest, stored.digest):
            if not self._is_old(stored, digest):
                raise _not_found(secret) if self.is_loaded else _not_loaded()
            until = stored.old_until
        if key.revoked_at is not None or key.expires_at is not None:
            if not self.is_active(key):
                ended = "has expired" if key.revoked_at is None else "was revoked"
                raise InvalidApiKey(f"the key {key.name!r} ({key.id}) {ended}: ask the operator for another")
            until = min(until, key.expires_at or math.inf)
        return key, until

    def _is_old(self, stored: StoredKey, digest: bytes) -> bool:
        """Whether it is the secret before the last rotation, and still valid."""
        if stored.old_digest is None or not compare_digest(digest, stored.old_digest):
            return False
        if stored.old_until <= self.unix_time():
            key = stored.key
            raise InvalidApiKey(f"the secret of the key {key.name!r} ({key.id}) was rotated: use the new one")
        return True


_NO_KEY = StoredKey(Key(id="", name=""), digest=bytes(32))


def _not_loaded() -> ServiceUnavailable:
    return ServiceUnavailable("the store of keys cannot be read yet, so no key can be checked", retry_after_s=5)


def _not_found(secret: bytes) -> InvalidApiKey:
    text = secret.decode("latin-1")
    key_id = id_of(text)
    if key_id is None or is_mistyped(text):
        return InvalidApiKey("the key is mistyped or cut off: its checksum does not match; copy it again")
    return InvalidApiKey(f"the key ctx_{key_id}_… does not exist, or has another secret by now")
