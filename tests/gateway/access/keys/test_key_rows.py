"""Keys in the store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
from fakes.patience import SAFETY_NET_S

from gateway.access.keys import key_rows
from gateway.access.keys.key_fields import InvalidKey, parse_fields
from gateway.access.keys.key_refresh import FIRST_KEY
from gateway.access.keys.secret import new_secret
from gateway.access.limits.limit import Budget
from gateway.access.store.database import Database


@pytest.fixture
def database(store_url):
    found = Database(store_url, Path("/"))
    found.upgrade()
    yield found
    found.close()


def test_key_is_read_as_it_was_written(database):
    fields = {
        "name": "alice",
        "may": ["helexa/*", "ü"],
        "verbs": ["read", "infer"],
        "rpm": 5,
        "budgets": ["usd 0.5/month", "tokens 5M/day observe"],
        "observe": ["rpm"],
        "weight": 7,
        "priority": "batch",
        "expires_at": 1.5,
    }
    created = database.write(partial(key_rows.create, columns=parse_fields(fields)))
    stored = database.read(partial(key_rows.find, name_or_id="alice"))
    assert stored == created.stored
    key = stored.key
    assert (key.may, key.verbs, key.weight, key.priority) == (("helexa/*", "ü"), {"read", "infer"}, 7, "batch")
    assert key.limits.budgets == (Budget("money", 0.5, "month"), Budget("tokens", 5e6, "day", enforce=False))
    assert (key.limits.rpm, key.limits.tpm, key.limits.observe) == (5, None, {"rpm"})
    assert key.expires_at == 1.5


@pytest.mark.parametrize("expires", ["0d", "36501d", "9" * 400 + "d", "-1d", "soon", 5])
def test_life_that_is_none_is_refused(expires):
    """Neither a key that has expired already nor one that never does, but for `never`."""
    with pytest.raises(InvalidKey, match="expires"):
        parse_fields({"name": "a", "expires": expires})


def test_keys_are_read_again_only_after_a_change(database):
    version, keys = database.read(partial(key_rows.read_if_changed, version=-1))
    assert keys == []
    assert database.read(partial(key_rows.read_if_changed, version=version)) is None
    created = database.write(partial(key_rows.create, columns={"name": "a"}))
    for change in (
        partial(key_rows.edit, key_id=created.stored.key.id, columns={"rpm": 1}),
        partial(key_rows.rotate, key_id=created.stored.key.id, grace_s=5),
        partial(key_rows.revoke, key_id=created.stored.key.id, end_streams=True),
    ):
        version, _ = database.read(partial(key_rows.read_if_changed, version=version))
        database.write(change)
    assert database.read(partial(key_rows.read_if_changed, version=version)) is not None


def test_names_are_unique_among_keys_that_are_not_revoked(database):
    first = database.write(partial(key_rows.create, columns={"name": "a"}))
    with pytest.raises(key_rows.KeyConflict, match=r"^there is a key with the name 'a' already$"):
        database.write(partial(key_rows.create, columns={"name": "a"}))
    other = database.write(partial(key_rows.create, columns={"name": "b"}))
    with pytest.raises(key_rows.KeyConflict):
        database.write(partial(key_rows.edit, key_id=other.stored.key.id, columns={"name": "a"}))
    database.write(partial(key_rows.revoke, key_id=first.stored.key.id, end_streams=False))
    database.write(partial(key_rows.edit, key_id=other.stored.key.id, columns={"name": "a"}))
    assert database.read(partial(key_rows.find, name_or_id="a")).key.id == other.stored.key.id


@pytest.mark.parametrize("secret", [None, "chosen"])
def test_of_gateways_that_start_together_one_makes_the_first_key(store_url, database, secret):
    chosen = new_secret("boot") if secret else None
    databases = [Database(store_url, Path("/")) for _ in range(4)]
    made, failed = [], []

    def start(each):
        try:
            made.append(each.write(partial(key_rows.create_first, columns=FIRST_KEY, secret=chosen)))
        except Exception as error:  # noqa: BLE001 - shown below
            failed.append(error)
        each.close()

    threads = [threading.Thread(target=start, args=(each,)) for each in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_NET_S)
    assert failed == []
    [created] = [each for each in made if each is not None]
    assert chosen in {None, created.secret}
    [stored] = database.read(key_rows.read_all)
    assert stored == created.stored


def test_two_changes_at_once_are_both_kept(store_url, database):
    """Each is one transaction on the row."""
    key_id = database.write(partial(key_rows.create, columns={"name": "a"})).stored.key.id
    other = Database(store_url, Path("/"))
    threads = [
        threading.Thread(target=each.write, args=(partial(key_rows.edit, key_id=key_id, columns=columns),))
        for each, columns in ((database, {"rpm": 7}), (other, {"tpm": 9}))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SAFETY_NET_S)
    limits = database.read(partial(key_rows.find, name_or_id=key_id)).key.limits
    assert (limits.rpm, limits.tpm) == (7, 9)
    other.close()
