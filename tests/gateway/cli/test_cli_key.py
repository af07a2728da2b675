"""`cortex key` and `cortex store` on the store of this host, as an operator runs them."""

from __future__ import annotations

import json
import sqlite3
import time

import pytest
from fakes.operator import Operator
from fakes.process import cortex

from gateway.access.keys import key_rows
from gateway.access.keys.key_changes import KeyChanges
from gateway.access.keys.secret import digest_of, is_mistyped
from gateway.access.store.database import Database
from gateway.access.store.schema import SCHEMA_VERSION
from gateway.cli.source.local_file import os_user


@pytest.fixture
def operator(tmp_path):
    (tmp_path / "models.toml").write_text("")
    (tmp_path / "cortex.toml").write_text('models_config = "models.toml"\n')
    return Operator(tmp_path)


def shown(operator, name):
    return json.loads(operator.done("key", "show", name, "--json"))


def test_create_prints_the_secret_once_and_stores_a_hash(operator, tmp_path):
    """The secret is all of stdout, so that `KEY=$(cortex key create alice)` works."""
    result = operator("key", "create", "alice")
    secret = result.stdout.strip()
    assert result.stdout == f"{secret}\n"
    assert not is_mistyped(secret)
    assert secret not in result.stderr
    assert secret not in operator.done("key", "list") + operator.done("key", "show", "alice", "--json")
    data = b"".join(path.read_bytes() for path in tmp_path.glob("cortex.db*"))
    assert secret.encode() not in data
    assert digest_of(secret).encode() in data
    key = shown(operator, "alice")
    assert (key["verbs"], key["may"], key["state"]) == (["infer"], ["*"], "active")


def test_every_setting_of_a_key_is_set_and_changed(operator):
    now = time.time()
    options = (
        *("--may", "helexa/*", "--may", "exact", "--verbs", "infer,read", "--rpm", 60, "--tpm", 90000),
        *("--concurrency", 4, "--budget", "usd 20/month", "--budget", "tokens 5M/day", "--observe", "tpm"),
        *("--weight", 300, "--priority", "batch", "--expires", "90d"),
    )
    operator.done("key", "create", "alice", *options)
    key = shown(operator, "alice")
    assert key["expires_at"] == pytest.approx(now + 90 * 86_400, abs=60)
    expected = {
        "may": ["helexa/*", "exact"],
        "verbs": ["infer", "read"],
        "rpm": 60,
        "tpm": 90_000,
        "concurrency": 4,
        "budgets": ["usd 20/month", "tokens 5000000/day"],
        "observe": ["tpm"],
        "weight": 300,
        "priority": "batch",
    }
    assert expected.items() <= key.items()

    operator.done("key", "edit", "alice", "--rpm", "none", "--budget", "none", "--expires", "never", "--name", "alicia")
    edited = shown(operator, "alicia")
    changes = {"name": "alicia", "rpm": None, "budgets": [], "expires_at": None}
    assert edited == key | changes
    assert shown(operator, key["id"]) == edited


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["create", "alice"], "there is a key with the name 'alice'"),
        (["create", "b", "--verbs", "infr"], "verbs: must be of infer, read, operate, keys; did you mean 'infer'?"),
        (["create", "b", "--budget", "usd 20"], "budget 1: must be UNIT AMOUNT/WINDOW"),
        (["create", "b", "--budget", "usd x/month"], "character 5: 'x' is no amount"),
        (["create", "b", "--budget", "token 5/day"], "character 1: 'token' is no unit"),
        (["create", "b", "--budget", "tokens 5/dag"], "character 10: 'dag' is no window"),
        (["create", "b", "--expires", "soon"], "expires: must be a number and a unit"),
        (["create", "b", "--rpm", "0"], "rpm: must be a whole number from 1"),
        (["create", "b", "--may", ""], "may: a glob must be 1 to 256"),
        (["create", "x" * 101], "name: must be a text of 1 to 100 characters"),
        (["create", "ctx_a"], "name: must not begin with ctx_"),
        (["create", "a\nb"], "name: must be printable"),
        (["show", "bob"], "there is no key with the name or id 'bob'"),
        (["edit", "bob", "--rpm", "1"], "there is no key with the name or id 'bob'"),
        (["edit", "alice"], "name what to change"),
        (["rotate", "alice", "--grace", "1x"], "grace: must be a number and a unit, s, m, h, d or w: for example 24h"),
        (["rotate", "alice", "--grace", "999999w"], "grace: must be at most 36500d"),
        (["revoke", "bob"], "there is no key with the name or id 'bob'"),
    ],
)
def test_what_is_refused_says_why(operator, arguments, text):
    """Exit code 1, and nothing is changed."""
    operator.done("key", "create", "alice")
    before = operator.done("key", "export")
    result = operator("key", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert text in result.stderr
    assert operator.done("key", "export") == before


@pytest.mark.parametrize("name", ["'; DROP TABLE keys; --", '" OR 1=1 --', "a%b_c", "ключ", "x/../y"])
def test_a_name_is_only_a_name(operator, name):
    """SQL in a name stays text."""
    operator.done("key", "create", name)
    operator.done("key", "create", "other")
    assert shown(operator, name)["name"] == name
    operator.done("key", "revoke", name)
    assert [key["name"] for key in json.loads(operator.done("key", "list", "--json"))["keys"]] == ["other"]


def test_rotation_gives_a_new_secret_and_keeps_the_old_one_for_its_grace(operator):
    first = operator("key", "create", "alice").stdout.strip()
    result = operator("key", "rotate", "alice", "--grace", "24h")
    second = result.stdout.strip()
    assert first.split("_")[1] == second.split("_")[1]
    assert first != second
    assert "the old secret still works" in result.stderr
    assert shown(operator, "alice")["old_secret_until"] == pytest.approx(time.time() + 86_400, abs=60)
    operator.done("key", "rotate", "alice")
    assert shown(operator, "alice")["old_secret_until"] is None


def test_every_change_is_in_the_audit_log(operator, tmp_path):
    """In the chain of the gateway's lines, with the user of this host; nothing of a secret. A look leaves no line."""
    secrets = [operator("key", "create", "alice").stdout.strip()]
    operator.done("key", "edit", "alice", "--rpm", 60)
    secrets.append(operator("key", "rotate", "alice", "--grace", "1h").stdout.strip())
    exported = operator.done("key", "export")
    operator.done("key", "list")
    operator.done("key", "revoke", "alice", "--now")
    assert operator("key", "revoke", "nobody").exit_code == 1
    (tmp_path / "keys.json").write_text(exported.replace(secrets[0].split("_")[1], "other1").replace("alice", "bob"))
    operator.done("key", "import", tmp_path / "keys.json")
    lines = operator.lines()
    assert [(line["event"], line["who"], line["summary"], line["outcome"]) for line in lines] == [
        ("key", os_user(), f"{summary} key {name}", outcome)
        for summary, name, outcome in (
            ("create", "alice", "active"),
            ("edit", "alice", "active"),
            ("rotate", "alice", "active"),
            ("revoke, with its running requests,", "alice", "revoked"),
            ("import", "bob", "active"),
        )
    ]
    assert "5 lines, numbers 1 to 5, are intact" in operator.done("audit", "verify")
    shown_lines = operator.done("audit", "show")
    assert "rotate key alice" in shown_lines
    assert "None" not in shown_lines
    assert not any(secret in str(lines) for secret in secrets)


def test_key_can_be_revoked_while_the_audit_log_is_out_of_order(operator, tmp_path):
    """The operator learns that the log lacks the change."""
    operator.done("key", "create", "alice")
    (tmp_path / "models.audit.jsonl").unlink()
    (tmp_path / "models.audit.jsonl").mkdir()
    result = operator("key", "revoke", "alice")
    assert result.exit_code == 0
    assert "warning: the audit log does not have this change" in result.stderr
    assert operator.done("key", "list", "--json") == '{\n  "keys": []\n}\n'


def test_requests_of_a_revoked_key_can_be_ended_after_all(operator):
    """By name while no other key has it, else by id."""
    operator.done("key", "create", "alice")
    key_id = shown(operator, "alice")["id"]
    operator.done("key", "revoke", "alice")
    revoked_at = shown(operator, key_id)["revoked_at"]
    assert operator.done("key", "revoke", "alice", "--now") == f"revoked alice ({key_id})\n"
    database = Database("sqlite:///cortex.db", operator.config.parent)
    assert [(stored.end_streams, stored.key.revoked_at) for stored in database.read(key_rows.read_all)] == [
        (True, revoked_at)
    ]
    database.close()
    operator.done("key", "create", "alice")
    assert key_id not in operator.done("key", "revoke", "alice")


def test_revoked_key_frees_its_name_and_cannot_come_back(operator):
    operator.done("key", "create", "alice")
    key_id = shown(operator, "alice")["id"]
    assert operator.done("key", "revoke", "alice", "--now") == f"revoked alice ({key_id})\n"
    for command in (("edit", key_id, "--rpm", 1), ("rotate", key_id)):
        result = operator("key", *command)
        assert (result.exit_code, "was revoked" in result.stderr) == (1, True)
    operator.done("key", "create", "alice")
    states = [
        (key["id"] == key_id, key["state"])
        for key in json.loads(operator.done("key", "list", "--all", "--json"))["keys"]
    ]
    assert sorted(states) == [(False, "active"), (True, "revoked")]


def test_export_and_import_move_keys_without_their_secrets(operator, tmp_path):
    """Importing again changes nothing; a faulty file imports nothing."""
    secret = operator("key", "create", "alice", "--may", "a*").stdout.strip()
    operator.done("key", "create", "bob")
    operator.done("key", "revoke", "bob")
    exported = operator.done("key", "export")
    assert secret not in exported
    other = tmp_path / "other"
    other.mkdir()
    (other / "models.toml").write_text("")
    (other / "cortex.toml").write_text('models_config = "models.toml"\n')
    (tmp_path / "keys.json").write_text(exported)
    target = Operator(other)
    for imported in (1, 0):
        assert f"imported {imported} of 1" in target.done("key", "import", tmp_path / "keys.json")
    assert json.loads(target.done("key", "export"))["keys"] == json.loads(exported)["keys"]

    records = json.loads(exported)["keys"]
    bad = [records[0] | {"id": "new", "name": "n"}, records[0] | {"secret_sha256": "x"}]
    for text in ("[]", "{", json.dumps({"keys": bad}), json.dumps({"keys": [{"name": "x"}]})):
        (tmp_path / "keys.json").write_text(text)
        assert target("key", "import", tmp_path / "keys.json").exit_code == 1
    assert len(json.loads(target.done("key", "export"))["keys"]) == 1


def test_money_is_in_the_currency_of_the_ledger(operator):
    operator.config.write_text(operator.config.read_text() + '[ledger]\ncurrency = "EUR"\n')
    operator.done("key", "create", "alice", "--budget", "eur 20/month")
    assert shown(operator, "alice")["budgets"] == ["eur 20/month"]
    assert "'usd' is no unit" in operator("key", "edit", "alice", "--budget", "usd 20/month").stderr


def test_url_that_names_no_database_is_a_fault_of_the_file(operator):
    """For `check` and `serve` too, without a traceback."""
    operator.config.write_text(operator.config.read_text() + '[store]\nurl = "sqlite:///"\n')
    for command in (("key", "list"), ("store", "check"), ("check",), ("serve",)):
        result = cortex(*command, "-c", operator.config)
        assert (result.returncode, "Traceback" in result.stderr) == (1, False), command
        assert "store.url: sqlite needs a file" in result.stderr


def test_store_that_cannot_be_used_is_exit_code_2(operator, tmp_path):
    (tmp_path / "cortex.db").write_text("this is no database, but long enough to look at it" * 100)
    for command in (("key", "list"), ("store", "check"), ("store", "upgrade")):
        result = operator(*command)
        assert result.exit_code == 2, result.output
        assert "file is not a database; stop the gateways that use it, move the file" in result.stderr
        assert "`cortex store backup`" in result.stderr


@pytest.mark.parametrize(("mode", "code"), [("keys", 1), ("open", 0)])
def test_check_finds_a_store_that_cannot_be(operator, tmp_path, mode, code):
    """A fault where the gateway would not start, a warning where it starts without."""
    (tmp_path / "file").write_text("")
    text = operator.config.read_text()
    operator.config.write_text(f'{text}[access]\nmode = "{mode}"\n[store]\nurl = "sqlite:///file/cortex.db"\n')
    result = cortex("check", "-c", operator.config)
    assert result.returncode == code, result.stderr
    assert f"cannot be created: {tmp_path / 'file'} is not a directory" in result.stderr
    operator.config.write_text(f'{text}[access]\nmode = "{mode}"\n[state]\ndir = "{tmp_path / "file" / "state"}"\n')
    result = cortex("check", "-c", operator.config)
    assert result.returncode == code, result.stderr
    assert "store.url: " in result.stderr


def test_store_commands(operator, tmp_path):
    """Check says what is missing, upgrade makes it, and a backup has everything that was committed."""
    assert operator("store", "check").exit_code == 2  # there is none yet
    assert f"migrated to schema version {SCHEMA_VERSION}" in operator.done("store", "upgrade")
    assert f"already has schema version {SCHEMA_VERSION}" in operator.done("store", "upgrade")
    assert "ok, schema version" in operator.done("store", "check")
    database = Database("sqlite:///cortex.db", tmp_path)
    database.write(lambda connection: KeyChanges().create(connection, {"name": "alice"}))  # still open, in the WAL
    operator.done("store", "backup", tmp_path / "copy.db")
    database.close()
    with sqlite3.connect(tmp_path / "copy.db") as copy:
        assert copy.execute("SELECT name FROM keys").fetchall() == [("alice",)]
    copy.close()
    again = operator("store", "backup", tmp_path / "copy.db")
    assert (again.exit_code, "exists" in again.stderr) == (1, True)
    with sqlite3.connect(tmp_path / "cortex.db") as raw:
        raw.execute("UPDATE alembic_version SET version_num = '9999'")
    raw.close()
    for command in (("store", "check"), ("store", "upgrade")):
        result = operator(*command)
        assert (result.exit_code, "9999" in result.stderr) == (1, True)
