"""What a connection keeps of a key between requests with the same headers: never for longer than the key is valid."""

from dataclasses import replace
from hashlib import sha256
from types import SimpleNamespace

import pytest

from gateway import errors
from gateway.access.admission import Access
from gateway.access.keys.key import Key
from gateway.access.keys.key_table import KeyTable, StoredKey
from gateway.access.keys.secret import new_secret

ALICE = Key("alice", "alice")
NEW, OLD = new_secret("alice"), new_secret("alice")


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def ask(clock):
    """Authenticates with a secret, over a connection whose requests all have the same headers."""
    table, exchange = KeyTable(unix_time=clock), SimpleNamespace(derived={})
    access = Access(table, mode="keys")

    def ask(secret):
        return access.authenticate([(b"authorization", b"Bearer " + secret.encode())], exchange)

    ask.table = table
    return ask


def stored(key=ALICE, **more):
    return StoredKey(key, sha256(NEW.encode()).digest(), **more)


def test_a_kept_key_is_not_looked_up_again(ask):
    ask.table.replace([stored()])
    assert ask(NEW) is ALICE
    ask.table.look_up = None
    assert ask(NEW) is ALICE


@pytest.mark.parametrize("change", [[], [stored(replace(ALICE, revoked_at=1000.0))]])
def test_a_kept_key_that_is_deleted_or_revoked_is_refused_at_once(ask, change):
    ask.table.replace([stored()])
    ask(NEW)
    ask.table.replace(change)
    with pytest.raises(errors.InvalidApiKey):
        ask(NEW)


def test_a_kept_key_has_its_new_limits_at_once(ask):
    ask.table.replace([stored()])
    ask(NEW)
    edited = replace(ALICE, may=("helexa/*",))
    ask.table.replace([stored(edited)])
    assert ask(NEW) is edited


def test_a_kept_key_expires(ask, clock):
    ask.table.replace([stored(replace(ALICE, expires_at=1010.0))])
    ask(NEW)
    clock.now = 1009.9
    ask(NEW)
    clock.now = 1010.0
    with pytest.raises(errors.InvalidApiKey, match="has expired"):
        ask(NEW)


def test_the_secret_before_a_rotation_is_kept_for_its_grace_only(ask, clock):
    ask.table.replace([stored(old_digest=sha256(OLD.encode()).digest(), old_until=1010.0)])
    assert ask(OLD) is ALICE
    clock.now = 1010.0
    with pytest.raises(errors.InvalidApiKey, match="was rotated"):
        ask(OLD)


def test_a_wrong_secret_is_not_kept(ask):
    ask.table.replace([stored()])
    for _ in range(2):
        with pytest.raises(errors.InvalidApiKey):
            ask(OLD)
