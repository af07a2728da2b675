"""models.toml over the network: the admin API's catalogue, aliases, rollouts, rollback, history and audit log."""

from __future__ import annotations

import tomllib

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.running import LARGE, MODELS_TOML, SMALL, running_gateway

TOKEN = {"authorization": "Bearer secret"}


@pytest.fixture
async def cortex(tmp_path):
    async with running_gateway(tmp_path) as running:
        yield running


@pytest.fixture
async def admin(cortex):
    """An operator's client of the metrics port."""
    url = f"http://{cortex.addresses.metrics}"
    async with httpx.AsyncClient(base_url=url, headers=TOKEN, trust_env=False, timeout=SAFETY_NET_S) as client:
        yield client


async def etag(admin, path="/admin/catalogue"):
    return {"if-match": (await admin.get(path)).headers["etag"]}


def code(answer):
    return (answer.status_code, answer.json()["error"]["code"])


def aliases_on_disk(cortex):
    return tomllib.loads(cortex.models_toml.read_text())["aliases"]


# The whole file.


async def test_file_is_got_and_put(cortex, admin):
    """The bytes; what was put is in force when the answer comes."""
    got = await admin.get("/admin/catalogue")
    assert (got.text, got.headers["content-type"]) == (MODELS_TOML, "application/toml")

    text = MODELS_TOML.replace(f'"helexa/small" = "{SMALL}"', f'"helexa/small" = "{LARGE}"')
    put = await admin.put("/admin/catalogue", content=text, headers={"if-match": got.headers["etag"]})

    assert put.status_code == 200
    assert (put.json()["result"], put.json()["generation"], put.json()["digest"]) == (
        "applied",
        2,
        put.json()["written"],
    )
    assert put.headers["etag"] == (await admin.get("/admin/catalogue")).headers["etag"] == f'"{put.json()["written"]}"'
    assert cortex.models_toml.read_text() == text


@pytest.mark.parametrize(
    ("method", "path", "json"),
    [
        ("PUT", "/admin/catalogue", None),
        ("PUT", "/admin/aliases/helexa%2Fsmall", {"target": LARGE}),
        ("DELETE", "/admin/aliases/helexa%2Fsmall", None),
    ],
)
async def test_change_must_name_what_it_is_based_on(cortex, admin, method, path, json):
    """428 without If-Match, 412 with that of another file; nothing is written."""
    content = {"json": json} if json else {"content": MODELS_TOML + "# more\n"} if method == "PUT" else {}

    assert code(await admin.request(method, path, **content)) == (428, "precondition_required")
    for other in ('"0000"', 'W/"0000"', "0000"):
        answer = await admin.request(method, path, headers={"if-match": other}, **content)
        assert code(answer) == (412, "precondition_failed")
    assert cortex.models_toml.read_text() == MODELS_TOML


async def test_faulty_file_is_refused_with_every_fault(cortex, admin):
    """422; the file keeps its content. So does an empty one, and one that is no TOML."""
    for text, fault in (
        ('[aliases]\na = 7\nb = ""\n', ":2: aliases.a: "),
        ("", "would be empty"),
        ("[", "not TOML"),
    ):
        answer = await admin.put("/admin/catalogue", content=text, headers=await etag(admin))
        assert code(answer) == (422, "invalid_catalogue")
        assert fault in answer.json()["error"]["message"]
    assert cortex.models_toml.read_text() == MODELS_TOML


@pytest.mark.parametrize("damage", ["emptied", "broken", "deleted"])
async def test_edit_of_a_file_that_is_not_in_force_is_refused_and_rollback_restores_it(cortex, admin, damage):
    """An edit based on the file in force does not match the file on disk."""
    if damage == "deleted":
        cortex.models_toml.unlink()
    else:
        cortex.models_toml.write_text("" if damage == "emptied" else MODELS_TOML + "[")

    headers = await etag(admin)
    answer = await admin.put("/admin/aliases/helexa%2Fsmall", json={"target": LARGE}, headers=headers)
    assert answer.status_code in {409, 412}
    if damage != "deleted":
        assert (await admin.get("/admin/catalogue?source=disk")).text == cortex.models_toml.read_text()

    restored = await admin.post("/admin/rollback")
    assert restored.status_code == 200, restored.text
    assert cortex.models_toml.read_text() == MODELS_TOML


# Aliases.


async def test_alias_is_got_put_and_deleted(cortex, admin):
    """Its name is one segment of the path, percent-encoded. The rest of the file keeps its text."""
    path = "/admin/aliases/helexa%2Fsmall"
    got = await admin.get(path)
    assert got.json() == {
        "name": "helexa/small",
        "target": SMALL,
        "state": "in_force",
        "in_force": [{"model": SMALL, "weight": 1.0}],
    }

    keys = {"targets": [{"model": SMALL, "weight": 90}, {"model": LARGE, "weight": 10}], "sticky": "key"}
    keys |= {"params": {"temperature": 0.5, "nested": {"a b": [True, "x"]}}, "shadow": None}
    put = await admin.put(path, json=keys, headers={"if-match": got.headers["etag"]})
    assert put.status_code == 200, put.text
    del keys["shadow"]
    assert aliases_on_disk(cortex)["helexa/small"] == keys

    again = await admin.get(path)
    assert again.json().items() >= keys.items()
    put = await admin.put(path, json=again.json() | {"echo": "alias"}, headers={"if-match": again.headers["etag"]})
    assert aliases_on_disk(cortex)["helexa/small"] == keys | {"echo": "alias"}

    put = await admin.put(path, json={"target": SMALL}, headers={"if-match": put.headers["etag"]})
    assert cortex.models_toml.read_text() == MODELS_TOML
    deleted = await admin.delete(path, headers={"if-match": put.headers["etag"]})
    assert deleted.status_code == 200
    assert "helexa/small" not in aliases_on_disk(cortex)
    assert code(await admin.get(path)) == (404, "not_found")


async def test_alias_with_an_unknown_target_is_refused_unless_forced(cortex, admin):
    """404 with the nearest known model."""
    path = "/admin/aliases/new"
    answer = await admin.put(path, json={"target": SMALL.lower()}, headers=await etag(admin))
    assert code(answer) == (404, "model_not_found")
    assert f"did you mean '{SMALL}'" in answer.json()["error"]["message"]

    assert (await admin.put(f"{path}?force=1", json={"target": "x/y"}, headers=await etag(admin))).status_code == 200


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"[1]", (400, "malformed_json")),
        (b"{", (400, "malformed_json")),
        (b"{}", (422, "invalid_catalogue")),
        (b'{"target": "helexa/large"}', (422, "invalid_catalogue")),
        (b'{"target": 7}', (422, "invalid_catalogue")),
        (b'{"tagret": "x"}', (422, "invalid_catalogue")),
        (b'{"target": "x", "targets": ["y"]}', (422, "invalid_catalogue")),
    ],
)
async def test_alias_that_is_none_is_refused(cortex, admin, body, error):
    """With the fault's text; nothing is written."""
    answer = await admin.put("/admin/aliases/helexa%2Fsmall", content=body, headers=await etag(admin))

    assert code(answer) == error
    assert cortex.models_toml.read_text() == MODELS_TOML


async def test_unknown_alias_error_names_the_nearest(cortex, admin):
    """Of a GET and of a DELETE."""
    for method in ("GET", "DELETE"):
        answer = await admin.request(method, "/admin/aliases/helexa%2Fsmal", headers=await etag(admin))
        assert code(answer) == (404, "not_found")
        assert "did you mean 'helexa/small'" in answer.json()["error"]["message"]


# Rollouts, rollback, history, audit.


async def test_rollout_is_started_shown_and_ended(cortex, admin):
    """202; the rollout controller begins it. DELETE restores the alias."""
    path = "/admin/aliases/helexa%2Fsmall/rollout"
    assert code(await admin.get(path)) == (404, "not_found")
    started = await admin.post(path, json={"target": LARGE, "steps": [10, 100], "every_seconds": 3600, "guards": {}})
    assert (started.status_code, started.json()["minimum"]) == (202, 0)
    assert code(await admin.post(path, json={"target": LARGE})) == (409, "conflict")
    rollouts = cortex.gateway.rollouts
    await until(lambda: any(view.elapsed_s is not None for view in rollouts.views()))
    assert (await admin.get(path)).json()["step"] == 0

    ended = await admin.delete(path)
    assert (ended.status_code, ended.json()["state"]) == (200, "aborted")
    assert aliases_on_disk(cortex)["helexa/small"] == SMALL
    assert code(await admin.delete(path)) == (404, "not_found")


@pytest.mark.parametrize(
    ("alias", "body", "status"),
    [
        ("nobody", {"target": LARGE}, 404),
        ("helexa%2Fsmall", {"target": "x/unknown"}, 404),
        ("helexa%2Fsmall", {"target": SMALL}, 409),
        ("helexa%2Fsmall", {"target": "helexa/large"}, 422),
        ("helexa%2Fsmall", {"target": LARGE, "steps": [50, 5]}, 400),
        ("helexa%2Fsmall", {"target": LARGE, "guards": {"luck": 1}}, 400),
        ("helexa%2Fsmall", {"target": LARGE, "every_seconds": 1e308}, 400),
        ("helexa%2Fsmall", {"target": LARGE, "min_requests": 10**30}, 400),
        ("helexa%2Fsmall", {}, 400),
    ],
)
async def test_rollout_that_makes_no_sense_is_refused(admin, alias, body, status):
    """Before anything is stored."""
    answer = await admin.post(f"/admin/aliases/{alias}/rollout", json=body)

    assert answer.status_code == status
    assert (await admin.get("/admin/rollouts")).json() == {"rollouts": []}


async def test_rollback_history_and_audit(cortex, admin):
    """The audit log has who made the change, and with which command."""
    who = {"x-cortex-user": "anna%20B", "x-cortex-command": "cortex alias set helexa/small x"}
    put = await admin.put("/admin/aliases/helexa%2Fsmall", json={"target": LARGE}, headers=await etag(admin) | who)
    assert put.status_code == 200

    async def lines():
        return (await admin.get("/admin/audit?verify=1")).json()

    while len((await lines())["lines"]) < 2:  # they are written by a thread
        await trio.sleep(0.01)
    body = await lines()
    line = next(each for each in body["lines"] if each["event"] == "applied")
    assert (line["who"], line["command"]) == ("admin (anna B)", "cortex alias set helexa/small x")
    assert body["verification"]["broken"] is None
    assert body["verification"]["lines"] >= 2
    assert len((await admin.get("/admin/audit?limit=1")).json()["lines"]) == 1
    for listed in ("audit", "history"):
        assert (await admin.get(f"/admin/{listed}?limit={10**30}")).status_code == 200

    versions = (await admin.get("/admin/history?alias=helexa%2Fsmall")).json()["versions"]
    assert versions[0]["aliases"] == ["helexa/small"]
    first = (await admin.get("/admin/history")).json()["versions"][-1]

    wanted = {"alias": "helexa/small", "to": str(first["number"])}
    planned = await admin.post("/admin/rollback/plan", json=wanted)
    assert planned.json()["verdict"] == "changes"
    assert [(each["name"], each["old"], each["new"]) for each in planned.json()["aliases"]] == [
        ("helexa/small", LARGE, SMALL)
    ]
    assert planned.json()["devices"]
    assert (await admin.post("/admin/rollback/plan", json={"alias": "helexa/small"})).json()["aliases"][0][
        "new"
    ] == SMALL
    assert LARGE in cortex.models_toml.read_text()  # a plan changes nothing
    other = {"if-match": '"another"'}
    assert code(await admin.post("/admin/rollback", json=wanted, headers=other)) == (412, "precondition_failed")
    assert code(await admin.post("/admin/rollback/plan", json={"to": "99999"})) == (404, "not_found")

    based_on = {"if-match": planned.headers["etag"]}
    back = await admin.post("/admin/rollback", json=wanted, headers=based_on)
    assert back.status_code == 200
    assert cortex.models_toml.read_text() == MODELS_TOML
    assert code(await admin.post("/admin/rollback", json={"to": "99999"})) == (404, "not_found")
    for bad in ("0", "x", "-1"):
        assert (await admin.get(f"/admin/history?limit={bad}")).status_code == 400
