"""Changes of keys under a running gateway: the admin API, other processes, revocation, and a store that is away."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio
from click.testing import CliRunner
from fakes.keys import bearer, new_key
from fakes.patience import SAFETY_NET_S, until
from fakes.process import running_cortex
from fakes.running import PROBE, running_gateway

from gateway.access.keys.key_changes import KeyChanges
from gateway.access.keys.secret import new_secret
from gateway.access.store.database import Database
from gateway.cli import main
from gateway.config.settings import AccessSettings, AdminSettings, StoreSettings
from neuron.simulated.fleet import neuron

ALL_VERBS = ["infer", "read", "operate", "keys"]
KEYS = AccessSettings(mode="keys")
CHAT = {"model": "helexa/small", "messages": PROBE}


@pytest.fixture
async def cortex(tmp_path, store_url):
    async with running_gateway(tmp_path, access=KEYS, admin=AdminSettings(), store=StoreSettings(store_url)) as running:
        yield running


def client_of(url, secret):
    return httpx.AsyncClient(base_url=url, headers=bearer(secret), trust_env=False, timeout=SAFETY_NET_S)


def admin_of(running, secret):
    return client_of(f"http://{running.addresses.metrics}", secret)


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


async def status_of(running, secret):
    async with client_of(running.url, secret) as client:
        return (await client.post("/v1/chat/completions", json=CHAT)).status_code


async def test_admin_api_creates_edits_rotates_and_revokes(cortex):
    """Each change is in force when it is answered, and in the audit log with the name of the operator's key."""
    ops = await new_key(cortex.gateway, "ops", verbs=ALL_VERBS)
    async with admin_of(cortex, ops) as admin:
        answer = await admin.post("/admin/keys", json={"name": "alice", "may": ["helexa/*"], "rpm": 10})
        assert answer.status_code == 201
        created = answer.json()
        secret = created.pop("secret")
        assert await status_of(cortex, secret) == 200
        listed = (await admin.get("/admin/keys")).json()["keys"]
        assert [key["name"] for key in listed] == ["operator", "ops", "alice"]
        assert listed[-1].pop("use")["limits"]["rpm"]["used"] == 1
        assert listed[-1] == created
        assert "secret" not in json.dumps(listed).replace("old_secret_until", "")

        edited = await admin.patch("/admin/keys/alice", json={"may": ["other"]})
        assert edited.json() == created | {"may": ["other"]}
        assert await status_of(cortex, secret) == 403
        rotated = (await admin.patch(f"/admin/keys/{created['id']}", json={"rotate": True, "may": ["*"]})).json()
        assert await status_of(cortex, secret) == 401
        assert await status_of(cortex, rotated["secret"]) == 200
        revoked = await admin.delete("/admin/keys/alice")
        assert revoked.json()["state"] == "revoked"
        assert await status_of(cortex, rotated["secret"]) == 401

        for method, path, body, expected in (
            ("POST", "/admin/keys", {}, (400, None)),
            ("POST", "/admin/keys", {"name": "x", "color": "red"}, (400, None)),
            ("POST", "/admin/keys", {"name": "x", "id": "mine"}, (400, None)),
            ("POST", "/admin/keys", {"name": "ops"}, (409, "conflict")),
            ("PATCH", "/admin/keys/nobody", {}, (404, "not_found")),
            ("PATCH", f"/admin/keys/{created['id']}", {"rpm": 1}, (409, "conflict")),
            ("PATCH", "/admin/keys/ops", {"rotate": "yes"}, (400, None)),
            ("DELETE", "/admin/keys/nobody", None, (404, "not_found")),
        ):
            assert code(await admin.request(method, path, json=body)) == expected, (method, path, body)
        assert (await admin.post("/admin/keys", content=b"[]")).status_code == 400

        lines = (await admin.get("/admin/audit")).json()["lines"]
        changes = [line["summary"] for line in lines if line["event"] == "key"]
        operations = ["create key alice", "edit key alice", "rotate key alice", "revoke key alice"]
        assert changes == ["create key operator, the first", *operations]
        who = [line["who"].split(" (")[0] for line in lines if line["event"] == "key"]
        assert who == ["cortex", *["ops"] * 4]


async def test_requests_of_operators_are_read_strictly(cortex):
    """What two JSON readers understand differently, or what is only nearly a flag, is refused and changes nothing."""
    ops = await new_key(cortex.gateway, "ops", verbs=ALL_VERBS)
    refused = (
        ("POST", "/admin/keys", b'{"name":"a","name":"b"}', "the name 'name' is there twice"),
        ("POST", "/admin/keys", b'{"name":"a","may":["*"],"may":["x"]}', "the name 'may' is there twice"),
        ("POST", "/admin/keys", b'{"name":"a\\ud800"}', "half of a surrogate pair"),
        ("POST", "/admin/keys", b'{"name":"a"', "truncated"),
        ("GET", "/admin/requests?recent=nan", b"", "recent must be 1 or 0"),
        ("GET", "/admin/keys?hashes=yes", b"", "hashes must be 1 or 0"),
        ("DELETE", "/admin/keys/ops?now=yes", b"", "now must be 1 or 0"),
        ("GET", "/admin/usage?since=nan", b"", "since"),
    )
    async with admin_of(cortex, ops) as admin:
        for method, path, body, text in refused:
            answer = await admin.request(method, path, content=body)
            assert answer.status_code == 400, (path, answer.text)
            assert text in answer.json()["error"]["message"]
        keys = (await admin.get("/admin/keys?hashes=0")).json()["keys"]
        assert [(key["name"], key["state"]) for key in keys] == [("operator", "active"), ("ops", "active")]


async def test_audit_log_names_the_key_of_who_drains_loads_and_unloads(cortex):
    """So the log distinguishes two operators."""
    for name in ("anna", "bert"):
        async with admin_of(cortex, await new_key(cortex.gateway, name, verbs=ALL_VERBS)) as admin:
            (await admin.post("/admin/nodes/beast/drain")).raise_for_status()
            (await admin.post("/admin/nodes/beast/undrain")).raise_for_status()
            (await admin.post("/admin/load", json={"model": "helexa/small"})).raise_for_status()
            (await admin.post("/admin/unload", json={"model": "helexa/large"})).raise_for_status()
            await until(lambda: not cortex.gateway.scheduler.is_busy("beast"))
            (await admin.post("/admin/load", json={"model": "helexa/large"})).raise_for_status()
            await until(lambda: not cortex.gateway.scheduler.is_busy("beast"))
            await until(lambda: cortex.gateway.auditor.status()["pending"] == 0)
            lines = (await admin.get("/admin/audit", params={"limit": 50})).json()["lines"]
    asked = [
        (line["event"], line["who"].split(" (")[0])
        for line in lines
        if line["event"] in {"drain", "undrain", "load", "unload"}
    ]
    events = ("drain", "undrain", "load", "unload", "load")
    assert asked == [(event, name) for name in ("anna", "bert") for event in events]


async def test_each_admin_route_needs_its_verb(cortex):
    """`read` for what only shows, `keys` for keys, `operate` for the rest."""
    routes = {
        "read": [
            ("GET", "/admin/fleet"),
            ("GET", "/admin/requests"),
            ("GET", "/admin/audit"),
            ("POST", "/admin/plan"),
            ("POST", "/admin/rollback/plan"),
        ],
        "operate": [("POST", "/admin/reload"), ("POST", "/admin/nodes/beast/undrain"), ("DELETE", "/admin/requests/x")],
        "keys": [("GET", "/admin/keys"), ("POST", "/admin/keys"), ("DELETE", "/admin/keys/x")],
    }
    for verb in ALL_VERBS:
        secret = await new_key(cortex.gateway, verb, verbs=[verb])
        async with admin_of(cortex, secret) as admin:
            for needed, calls in routes.items():
                for method, path in calls:
                    answer = await admin.request(method, path)
                    refused = answer.status_code == 403 and answer.json()["error"]["code"] == "verb_not_allowed"
                    assert refused == (needed != verb), (verb, method, path)


async def test_no_key_grants_what_it_lacks(cortex):
    """Neither to others, nor by taking over a key that has more; nor does it revoke one."""
    clerk = await new_key(cortex.gateway, "clerk", verbs=["keys", "infer"], may=["helexa/*"])
    await new_key(cortex.gateway, "boss", verbs=ALL_VERBS)
    await new_key(cortex.gateway, "wide")
    async with admin_of(cortex, clerk) as admin:
        assert (await admin.post("/admin/keys", json={"name": "a", "may": ["helexa/small"]})).status_code == 201
        for body, expected in (
            ({"name": "b", "may": ["helexa/*"], "verbs": ["read"]}, "verb_not_allowed"),
            ({"name": "b"}, "model_not_allowed"),  # a new key may use every name by default
            ({"name": "b", "may": ["*"]}, "model_not_allowed"),
            ({"name": "b", "may": ["helexa/*", "h*"]}, "model_not_allowed"),
        ):
            assert code(await admin.post("/admin/keys", json=body)) == (403, expected), body
        for path, body, expected in (
            ("a", {"verbs": ["operate"]}, "verb_not_allowed"),
            ("a", {"may": ["*"]}, "model_not_allowed"),
            ("clerk", {"verbs": ALL_VERBS}, "verb_not_allowed"),
            ("boss", {"rotate": True}, "verb_not_allowed"),
            ("boss", {"rpm": 1}, "verb_not_allowed"),
            ("wide", {"rotate": True}, "model_not_allowed"),
        ):
            assert code(await admin.patch(f"/admin/keys/{path}", json=body)) == (403, expected), (path, body)
        for name, expected in (("boss", "verb_not_allowed"), ("wide", "model_not_allowed")):
            assert code(await admin.delete(f"/admin/keys/{name}?now=1")) == (403, expected), name
        assert (await admin.delete("/admin/keys/a")).json()["state"] == "revoked"


async def test_admin_token_still_works_as_a_key_without_infer(tmp_path):
    """Deprecated: it counts as read, operate and keys."""
    async with running_gateway(tmp_path, access=KEYS) as running:
        async with admin_of(running, "secret") as admin:
            assert (await admin.get("/admin/fleet")).status_code == 200
            assert (await admin.post("/admin/keys", json={"name": "a"})).status_code == 201
        assert await status_of(running, "secret") == 403
        async with client_of(running.url, "secret") as client:
            assert (await client.get("/v1/models")).status_code == 200
            assert "problems" in (await client.get("/health")).json()


async def test_change_by_another_process_is_in_force_within_a_second(cortex, store_url):
    """Without a restart: gateways look every half second."""
    other = Database(store_url, Path("/"))

    def write(work, **arguments):
        return trio.to_thread.run_sync(lambda: other.write(partial(work, **arguments)))

    created = await write(KeyChanges().create, fields={"name": "alice"})
    secret = created["secret"]

    async def becomes(status):
        with trio.fail_after(SAFETY_NET_S):
            while await status_of(cortex, secret) != status:
                await trio.sleep(0.01)

    await becomes(200)
    await write(KeyChanges().edit, name_or_id="alice", fields={"may": ["x"]})
    await becomes(403)
    await write(KeyChanges().revoke, name_or_id="alice", end_streams=False)
    await becomes(401)
    await trio.to_thread.run_sync(other.close)


async def test_gateways_on_one_store_have_the_same_keys(tmp_path, store_url):
    """What one of them creates or revokes is in force at the other within a second, its running streams included."""
    slow = [neuron("beast", [24576], ["Qwen/Qwen3-1.7B"], speed=0.5)]
    sections = {"access": KEYS, "admin": AdminSettings(), "store": StoreSettings(store_url)}
    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    async with (
        running_gateway(tmp_path / "one", slow, **sections) as one,
        running_gateway(tmp_path / "other", slow, **sections) as other,
    ):
        ops = await new_key(one.gateway, "ops", verbs=ALL_VERBS)
        async with admin_of(one, ops) as admin:
            secret = (await admin.post("/admin/keys", json={"name": "alice"})).json()["secret"]
            key_id = secret.split("_")[1]
            await until(lambda: other.gateway.access_parts.access.table.by_id(key_id) is not None)
            async with (
                client_of(other.url, secret) as client,
                client.stream("POST", "/v1/chat/completions", json=CHAT | {"stream": True}) as answer,
            ):
                assert answer.status_code == 200
                await admin.delete(f"/admin/keys/{key_id}", params={"now": "1"})
                with trio.fail_after(SAFETY_NET_S):
                    text = (await answer.aread()).decode()
        assert "was revoked" in text
        assert "data: [DONE]" not in text
        assert await status_of(other, secret) == 401


@pytest.mark.parametrize("now", [False, True])
async def test_running_stream_of_a_revoked_key(tmp_path, now):
    """It goes on, or with `now` it ends with an error event; streams of other keys go on."""
    slow = [neuron("beast", [24576], ["Qwen/Qwen3-1.7B"], speed=0.5)]
    async with running_gateway(tmp_path, slow, access=KEYS) as running:
        alice, bob = await new_key(running.gateway, "alice"), await new_key(running.gateway, "bob")
        ops = await new_key(running.gateway, "ops", verbs=ALL_VERBS)
        async with client_of(running.url, alice) as client, client_of(running.url, bob) as other:
            body = CHAT | {"stream": True}
            async with (
                client.stream("POST", "/v1/chat/completions", json=body) as answer,
                other.stream("POST", "/v1/chat/completions", json=body) as theirs,
            ):
                lines, their_lines = answer.aiter_lines(), theirs.aiter_lines()
                await anext(lines)
                await anext(their_lines)
                async with admin_of(running, ops) as admin:
                    await admin.delete("/admin/keys/alice", params={"now": "1"} if now else {})
                live = {record.key_name for record in running.gateway.request_log.live.values()}
                assert "bob" in live
                if now:
                    with trio.fail_after(SAFETY_NET_S):
                        rest = [line async for line in lines]
                    error = json.loads(next(line for line in rest if '"error"' in line).removeprefix("data: "))
                    assert error["error"]["code"] == "invalid_api_key"
                    assert "data: [DONE]" not in rest
                else:
                    assert "alice" in live
                await anext(their_lines)


async def test_last_known_keys_stay_in_force_while_the_store_is_away(tmp_path):
    """`/health` says so, and when it is back, what changed meanwhile is in force."""
    async with running_gateway(tmp_path, access=KEYS) as running:
        ops = await new_key(running.gateway, "ops", verbs=ALL_VERBS)
        store, away = tmp_path / "cortex.db", tmp_path / "away.db"
        store.rename(away)

        async def problems():
            async with admin_of(running, ops) as admin:
                return [(each["code"], each["subject"]) for each in (await admin.get("/health")).json()["problems"]]

        await until(lambda: running.gateway.access_parts.store.error is not None)
        assert ("ledger_behind", str(store)) in await problems()
        assert await status_of(running, ops) == 200
        async with admin_of(running, ops) as admin:
            answer = await admin.post("/admin/keys", json={"name": "alice"})
            assert code(answer) == (503, "service_unavailable")
        away.rename(store)
        secret = None
        with trio.fail_after(SAFETY_NET_S):
            while secret is None:
                async with admin_of(running, ops) as admin:
                    secret = (await admin.post("/admin/keys", json={"name": "alice"})).json().get("secret")
        assert await status_of(running, secret) == 200
        await until(lambda: running.gateway.access_parts.store.error is None)


# The first key ........................................................................................................


async def test_first_start_makes_one_key_and_shows_it_once(tmp_path, capsys, store_url):
    """On stdout, not in the log. The second start has a key already."""
    sections = {"access": KEYS, "admin": AdminSettings(), "store": StoreSettings(store_url)}
    async with running_gateway(tmp_path, **sections) as running:
        printed = capsys.readouterr().out
        [secret] = [word for word in printed.split() if word.startswith("ctx_") and len(word) > 20]
        assert printed.count(secret) == 1
        async with admin_of(running, secret) as admin:
            assert (await admin.get("/admin/keys")).json()["keys"][0]["verbs"] == ALL_VERBS
        assert await status_of(running, secret) == 200
    async with running_gateway(tmp_path, **sections) as running:
        assert "ctx_" not in capsys.readouterr().out
        assert await status_of(running, secret) == 200


def run(*arguments, **env):
    result = CliRunner().invoke(main.main, [str(each) for each in arguments], env={"COLUMNS": "200"} | env)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_operator_works_with_the_bootstrap_key_over_the_network(tmp_path, monkeypatch):
    """`CORTEX_BOOTSTRAP_KEY` is the first key: with it, everything goes over the admin port."""
    monkeypatch.chdir(tmp_path)
    secret = new_secret("boot")
    config = tmp_path / "cortex.toml"
    config.write_text(
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n[access]\nmode = "keys"\n'
        f'[log]\nformat = "json"\n[state]\ndir = "{tmp_path}"\n'
    )
    with running_cortex("serve", "-c", config, CORTEX_BOOTSTRAP_KEY=secret) as process:
        listening = json.loads(process.log_line('"listening"'))
        env = {"CORTEX_URL": f"http://{listening['metrics']}", "CORTEX_KEY": secret}
        created = run("key", "create", "alice", "--may", "a*", **env).strip()
        assert run("key", "create", "bob", **(env | {"CORTEX_KEY": secret})).startswith("ctx_")
        assert {key["name"] for key in json.loads(run("key", "list", "--json", **env))["keys"]} == {
            "operator",
            "alice",
            "bob",
        }
        run("key", "edit", "alice", "--rpm", "5", **env)
        assert json.loads(run("key", "show", "alice", "--json", **env))["rpm"] == 5
        rotated = run("key", "rotate", "alice", "--grace", "1h", **env).strip()
        assert rotated != created
        exported = run("key", "export", **env)
        (tmp_path / "keys.json").write_text(exported)
        assert "imported 0 of 3" in run("key", "import", tmp_path / "keys.json", **env)
        assert "revoked bob" in run("key", "revoke", "bob", "--now", **env)
        for key in (created, rotated):
            answer = httpx.get(
                f"http://{listening['api']}/v1/models", headers=bearer(key), trust_env=False, timeout=SAFETY_NET_S
            )
            assert answer.status_code == 200
        assert "0 of 0 neurons" in run("status", **env)
        hidden = CliRunner().invoke(main.main, ["status"], env=env | {"CORTEX_KEY": None})
        assert (hidden.exit_code, "only to a key with the verb `read`" in hidden.stderr) == (1, True)
        refused = CliRunner().invoke(main.main, ["key", "list"], env=env | {"CORTEX_KEY": created})
        assert (refused.exit_code, "verb `keys`" in refused.stderr) == (1, True)
        process.interrupt()
        code, out, log = process.end()
        assert (code, "ctx_" in out) == (0, False)
        assert secret not in log
    gone = CliRunner().invoke(main.main, ["key", "list"], env=env)
    assert gone.exit_code == 2


def test_gateway_in_keys_mode_needs_its_store(tmp_path):
    """It would refuse everyone; one line says why. Exit code 1."""
    (tmp_path / "cortex.toml").write_text(
        '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n[access]\nmode = "keys"\n'
        f'[store]\nurl = "postgresql://nobody:hidden@/nothing?host={tmp_path}"\n[state]\ndir = "{tmp_path}"\n'
        '[[neurons]]\nname = "a"\nendpoint = "http://127.0.0.1:1"\n'
    )
    with running_cortex("serve", "-c", tmp_path / "cortex.toml") as process:
        code, _, log = process.end()
    assert code == 1
    assert "cortex: the store of keys cannot be used: postgresql://nobody:***@" in log
    assert "hidden" not in log
    assert "Traceback" not in log
