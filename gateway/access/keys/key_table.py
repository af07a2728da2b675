"""The keys of the store in memory, by which requests are checked: one dictionary look-up and one SHA-256."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b, sha256
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
        is_loaded: Whether the keys were ever read. Until then a valid key looks like a wrong one.
    """

    def __init__(self, *, unix_time: Callable[[], float] = time.time) -> None:
        self._unix_time = unix_time
        self._by_id: Mapping[bytes, StoredKey] = {}
        # The keys found since the last change, by a short digest of their secrets: no more than there are keys. It
        # spares a request OpenSSL's SHA-256 and two look-ups, half of the time. How long a look-up takes depends on the
        # digest, of which a client cannot choose a part.
        self._found: dict[bytes, Key] = {}
        self.is_loaded = False

    def replace(self, keys: Iterable[StoredKey]) -> None:
        """Put these keys in force, in one step."""
        self.is_loaded = True
        self._by_id = {stored.key.id.encode(): stored for stored in keys}
        self._found = {}

    def by_id(self, key_id: str) -> StoredKey | None:
        """The key with this id."""
        return self._by_id.get(key_id.encode())

    def keys(self) -> list[StoredKey]:
        """All keys, in the order of the store."""
        return list(self._by_id.values())

    def is_active(self, key: Key) -> bool:
        """Whether the key is neither revoked nor expired."""
        return key.revoked_at is None and (key.expires_at is None or key.expires_at > self._unix_time())

    def find(self, secret: bytes) -> Key:
        """The key with this secret, `ctx_…`.

        The time it takes does not depend on how much of a wrong secret is right: digests are compared, in constant
        time, and an unknown id costs a comparison too.

        Raises:
            InvalidApiKey: There is none, or it has expired or was revoked.
            ServiceUnavailable: The keys were not read yet.
        """
        known = self._found.get(blake2b(secret, digest_size=16).digest())
        if known is not None and (known.expires_at is None or known.expires_at > self._unix_time()):
            return known
        return self._find(secret)

    def _find(self, secret: bytes) -> Key:
        stored = self._by_id.get(secret[4 : secret.find(b"_", 4)], _NO_KEY)
        digest = sha256(secret).digest()
        is_current = compare_digest(digest, stored.digest)
        if not is_current and not self._is_old(stored, digest):
            raise _not_found(secret) if self.is_loaded else _not_loaded()
        key = stored.key
        if not self.is_active(key):
            ended = "has expired" if key.revoked_at is None else "was revoked"
            raise InvalidApiKey(f"the key {key.name!r} ({key.id}) {ended}: ask the operator for another")
        if is_current:
            self._found[blake2b(secret, digest_size=16).digest()] = key
        return key

    def _is_old(self, stored: StoredKey, digest: bytes) -> bool:
        """Whether it is the secret before the last rotation, and still valid."""
        if stored.old_digest is None or not compare_digest(digest, stored.old_digest):
            return False
        if stored.old_until <= self._unix_time():
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
