"""Who a request comes from, and what that key may do: no store, no network."""

from __future__ import annotations

import inspect
from hashlib import sha256

import pytest

from gateway import errors
from gateway.access.admission import TOKEN_KEY, Access
from gateway.access.keys import key_table
from gateway.access.keys.key import Key
from gateway.access.keys.key_table import KeyTable, StoredKey
from gateway.access.keys.secret import new_secret

NOW = 1_000_000.0
SECRET, OTHER, OLD = new_secret("alice1"), new_secret("bob2"), new_secret("alice1")
ALICE = Key(id="alice1", name="alice", may=("helexa/*", "exact"))


def digest(secret):
    return sha256(secret.encode()).digest()


def access(*stored, mode="keys", token=None):
    table = KeyTable(unix_time=lambda: NOW)
    table.replace(stored or (StoredKey(ALICE, digest(SECRET)), StoredKey(Key("bob2", "bob"), digest(OTHER))))
    return Access(table, mode=mode, admin_token=token)


def bearer(secret):
    return (b"authorization", b"Bearer " + secret.encode())


@pytest.mark.parametrize("mode", ["keys", "open"])
@pytest.mark.parametrize(
    "headers",
    [
        [bearer(SECRET)],
        [(b"authorization", b"bEARER   " + SECRET.encode() + b" ")],
        [(b"x-api-key", SECRET.encode())],
        [(b"api-key", SECRET.encode())],
        [(b"x-api-key", SECRET.encode()), bearer(SECRET)],  # the same twice
        [(b"authorization", b"Bearer sk-other"), (b"x-api-key", SECRET.encode())],  # a client's placeholder
        [(b"authorization", b"Basic dXNlcjpwYXNz"), (b"api-key", SECRET.encode())],
    ],
)
def test_key_is_found_where_clients_send_it(mode, headers):
    assert access(mode=mode).authenticate(headers) is ALICE


@pytest.mark.parametrize("mode", ["keys", "open"])
@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ([bearer(SECRET), (b"x-api-key", OTHER.encode())], "two keys that differ"),
        ([bearer(SECRET), bearer(OTHER)], "two keys that differ"),
        ([bearer(SECRET), (b"api-key", b"ctx_")], "two keys that differ"),
        ([bearer(SECRET[:-1])], "mistyped or cut off"),
        ([bearer(SECRET[:20] + ("y" if SECRET[20] == "x" else "x") + SECRET[21:])], "mistyped or cut off"),
        ([bearer("ctx_")], "mistyped or cut off"),
        ([bearer("ctx__")], "mistyped or cut off"),
        ([bearer("ctx_alice1_")], "mistyped or cut off"),
        ([bearer(new_secret("nobody"))], "ctx_nobody_… does not exist"),
        ([bearer(new_secret("alice1"))], "ctx_alice1_… does not exist, or has another secret"),
        ([(b"authorization", b"Bearer ctx_\xff\x00'; DROP TABLE keys; --")], "mistyped or cut off"),
        ([(b"x-api-key", b"ctx_" + b"A" * 60_000)], "mistyped or cut off"),
    ],
)
def test_wrong_keys_are_refused_in_both_modes(mode, headers, message):
    """What begins with `ctx_` is meant for us. No message has any of a secret."""
    with pytest.raises(errors.InvalidApiKey, match=message) as caught:
        access(mode=mode).authenticate(headers)
    assert (b"www-authenticate", b"Bearer") in caught.value.headers
    for secret in (SECRET, OTHER):
        assert secret[12:40] not in caught.value.message


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("sk-placeholder")],
        [(b"authorization", SECRET.encode())],  # without a scheme
        [(b"authorization", b"Basic " + SECRET.encode())],
        [(b"authorization", b"Bearer")],
        [(b"cookie", b"key=" + SECRET.encode())],
        [(b"x-auth-token", SECRET.encode())],
        [(b"proxy-authorization", b"Bearer " + SECRET.encode())],
        [(b"x-api-key", b"CTX_" + SECRET[4:].encode())],
    ],
)
def test_key_in_another_place_is_no_key(headers):
    """In keys mode 401; an open gateway ignores it."""
    with pytest.raises(errors.InvalidApiKey, match=r"needs a key|no key of this gateway"):
        access().authenticate(headers)
    assert access(mode="open").authenticate(headers) is None


def test_refusal_without_a_key_names_a_command_that_helps():
    """A key for the admin API needs the verb; `cortex key create NAME` makes one that may only infer."""
    with pytest.raises(errors.InvalidApiKey, match="`cortex key create NAME` creates one"):
        access().authenticate([])
    with pytest.raises(errors.InvalidApiKey, match="`cortex key create NAME --verbs operate` creates one"):
        access().authenticate_operator([], "operate")


def test_expired_and_revoked_keys_say_so():
    for change, word in (({"expires_at": NOW}, "expired"), ({"revoked_at": NOW - 5}, "was revoked")):
        stored = StoredKey(Key("alice1", "alice", **change), digest(SECRET))
        with pytest.raises(errors.InvalidApiKey, match=f"'alice' \\(alice1\\) .*{word}"):
            access(stored).authenticate([bearer(SECRET)])
    later = StoredKey(Key("alice1", "alice", expires_at=NOW + 0.001), digest(SECRET))
    assert access(later).authenticate([bearer(SECRET)]).name == "alice"


def test_old_secret_works_until_its_grace_ends():
    rotated = StoredKey(ALICE, digest(SECRET), digest(OLD), NOW + 1)
    assert access(rotated).authenticate([bearer(OLD)]) is ALICE
    assert access(rotated).authenticate([bearer(SECRET)]) is ALICE
    over = StoredKey(ALICE, digest(SECRET), digest(OLD), NOW)
    with pytest.raises(errors.InvalidApiKey, match="was rotated"):
        access(over).authenticate([bearer(OLD)])
    assert access(over).authenticate([bearer(SECRET)]) is ALICE


def test_time_does_not_depend_on_how_much_of_a_secret_is_right(monkeypatch):
    """Shown by construction: one comparison of whole digests in constant time, for an unknown id as for a known one."""
    compared = []

    def compare(one, other):
        compared.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr(key_table, "compare_digest", compare)
    for secret in (new_secret("alice1"), new_secret("nobody"), SECRET[:30], "ctx_"):
        compared.clear()
        with pytest.raises(errors.InvalidApiKey):
            access().authenticate([bearer(secret)])
        assert compared == [(32, 32)]
    assert "==" not in inspect.getsource(KeyTable.find)


def test_before_the_keys_are_read_no_key_is_called_wrong():
    with pytest.raises(errors.ServiceUnavailable):
        Access(KeyTable(), mode="open").authenticate([bearer(SECRET)])


@pytest.mark.parametrize("name", ["helexa/small", "exact"])
def test_scope_allows(name):
    access().authorize(ALICE, name)


@pytest.mark.parametrize("name", ["Helexa/small", "exact2", "helexa", "*", "helexa\x00/x", "other/helexa/x", ""])
def test_scope_refuses_and_names_the_model(name):
    with pytest.raises(errors.ModelNotAllowed) as caught:
        access().authorize(ALICE, name)
    assert f"'{name}'" in caught.value.message
    assert (caught.value.status, caught.value.code, caught.value.param) == (403, "model_not_allowed", "model")


def test_inference_needs_its_verb():
    with pytest.raises(errors.VerbNotAllowed, match="`infer`; 'ops' has operate, read"):
        access().authorize(Key("o", "ops", verbs=frozenset({"read", "operate"})), "x")


def test_operators_need_a_key_with_the_verb_in_both_modes():
    for mode in ("keys", "open"):
        checks = access(mode=mode, token="t0ken")
        assert checks.authenticate_operator([bearer("t0ken")], "keys") is TOKEN_KEY
        with pytest.raises(errors.VerbNotAllowed):
            checks.authenticate_operator([bearer(SECRET)], "read")
        for headers in ([], [bearer("wrong")], [bearer("t0ken"), bearer("t0ken")], [(b"x-api-key", b"t0ken")]):
            with pytest.raises(errors.InvalidApiKey):
                checks.authenticate_operator(headers, "read")
    with pytest.raises(errors.InvalidApiKey):
        access(mode="open").authenticate_operator([bearer("")], "read")


def test_admin_token_is_no_key_for_inference():
    """It counts as read, operate and keys. An open gateway ignores it, as everything else that is no key."""
    assert access(token="t0ken").authenticate([bearer("t0ken")]) is TOKEN_KEY
    with pytest.raises(errors.VerbNotAllowed):
        access(token="t0ken").authorize(TOKEN_KEY, "x")
    assert access(mode="open", token="t0ken").authenticate([bearer("t0ken")]) is None
