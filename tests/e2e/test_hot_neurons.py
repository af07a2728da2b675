"""Neurons are added, removed and moved while streams run, by the file and over the admin API; on real sockets."""

from __future__ import annotations

import stat
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.running import PROBE, SMALL, running_gateway, settled

from gateway.aliases.files.file_history import digest_of
from neuron.simulated.fleet import neuron

TOKEN = {"authorization": "Bearer secret"}
STREAM = {"model": SMALL, "messages": PROBE, "stream": True, "max_tokens": 40}
CLIENTS = 12


class Desk:
    """An operator with the file of the neurons, and the admin API."""

    def __init__(self, cortex, path, endpoints, admin):
        self.cortex, self.path, self.endpoints, self.admin = cortex, path, endpoints, admin

    @property
    def fleet(self):
        return self.cortex.gateway.fleet

    def save(self, text):
        new = self.path.with_suffix(".new")
        new.write_text(text)
        new.rename(self.path)

    def tables(self, **hosts):
        """A file with these neurons: name -> the host whose address it has."""
        return "".join(
            f'[[neurons]]\nname = "{name}"\nendpoint = "{self.endpoints[host]}"\n' for name, host in hosts.items()
        )

    async def fleet_is(self, **hosts):
        """Wait until the fleet has exactly these neurons, each healthy at its address."""
        wanted = {name: self.endpoints[host] for name, host in hosts.items()}
        await until(
            lambda: (
                {node.name: node.endpoint for node in self.fleet.nodes.values() if node.healthy} == wanted
                and self.fleet.nodes.keys() == wanted.keys()
            )
        )

    async def audit(self):
        """Author, summary and outcome of each line about neurons, oldest first."""
        await until(lambda: self.cortex.gateway.auditor.status()["pending"] == 0)
        lines = (await self.admin.get("/admin/audit", params={"limit": 50})).json()["lines"]
        return [(line["who"], line["summary"], line["outcome"]) for line in lines if line["event"] == "neurons"]


@pytest.fixture
async def desk(tmp_path):
    """Three hosts, each with the small model. At the start there is one neuron, on the first host."""
    async with desk_over(tmp_path) as desk:
        yield desk


@asynccontextmanager
async def desk_over(tmp_path):
    async with trio.open_nursery() as nursery:
        hosts = [neuron(name, [8192], [SMALL], speed=20) for name in ("one", "two", "three")]
        endpoints = {host.name: await nursery.start(host.serve) for host in hosts}
        path = tmp_path / "neurons.toml"
        path.write_text(f'[[neurons]]\nname = "a"\nendpoint = "{endpoints["one"]}"\n')
        async with running_gateway(tmp_path, [], neurons_config=path) as cortex:
            admin_url = f"http://{cortex.addresses.metrics}"
            async with httpx.AsyncClient(base_url=admin_url, headers=TOKEN, timeout=SAFETY_NET_S) as admin:
                yield Desk(cortex, path, endpoints, admin)
        nursery.cancel_scope.cancel()


async def test_no_request_is_lost_while_neurons_come_go_and_move(desk):
    """Every stream ends with its terminator, and none is refused, through twelve changes of the file."""
    answered, stop = [], trio.Event()

    async def stream_again_and_again():
        async with httpx.AsyncClient(base_url=desk.cortex.url, timeout=SAFETY_NET_S) as client:
            while not stop.is_set():
                response = await client.post("/v1/chat/completions", json=STREAM)
                ending = response.text[-40:]
                answered.append((response.status_code, ending.endswith("data: [DONE]\n\n") or ending))

    async with trio.open_nursery() as nursery:
        for _ in range(CLIENTS):
            nursery.start_soon(stream_again_and_again)
        for _ in range(2):
            for hosts in (
                {"a": "one", "b": "two"},  # added
                {"a": "three", "b": "two"},  # moved
                {"b": "two"},  # removed
                {"b": "one"},  # moved, the only one
                {"b": "one", "a": "two", "c": "three"},  # two at once
                {"a": "one"},  # removed, removed, moved
            ):
                began = len(answered)
                desk.save(desk.tables(**hosts))
                await desk.fleet_is(**hosts)
                await until(lambda began=began: len(answered) > began + CLIENTS)
        stop.set()

    assert set(answered) == {(200, True)}
    await settled(desk.cortex.gateway)
    await until(lambda: not desk.fleet.leaving)
    health = (await desk.admin.get("/health")).json()
    assert (health["nodes"], [problem["code"] for problem in health["problems"] if "node" in problem["code"]]) == (
        {"healthy": 1, "total": 1, "drained": 0},
        [],
    )


async def test_each_change_is_one_line_of_the_audit_log(desk):
    """With names and addresses, and without secrets."""
    desk.save(desk.tables(a="one", b="two"))
    await desk.fleet_is(a="one", b="two")
    desk.save(desk.tables(a="three").replace("\nendpoint", '\ntoken = "hush-hush"\nendpoint'))
    await desk.fleet_is(a="three")

    one, two, three = (desk.endpoints[name] for name in ("one", "two", "three"))
    assert await desk.audit() == [
        ("file", f"+b ({two})", "in force"),
        ("file", f"-b, a: endpoint {one} -> {three} and another token", "in force"),
    ]
    kept = sorted((desk.path.parent / "neurons.history").iterdir())
    assert len(kept) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}


@pytest.mark.parametrize(
    ("broken", "text"),
    [
        ("", "the file is empty"),
        ('[[neurons]]\nname = "b"\n', "is required and missing"),
        ("[[neurons]\n", "not TOML"),
        (None, "cannot be read: No such file"),
    ],
)
async def test_broken_file_is_a_problem_and_changes_nothing(desk, broken, text):
    """Until it is mended. `cortex reload` names the fault."""
    if broken is None:
        desk.path.unlink()
    else:
        desk.save(broken)

    answer = await desk.admin.post("/admin/reload")
    assert answer.status_code == 422
    assert text in answer.json()["neurons"]["faults"][0]["message"]
    [problem] = [
        problem
        for problem in (await desk.admin.get("/health")).json()["problems"]
        if problem["subject"] == str(desk.path)
    ]
    assert problem["code"] == "file_not_in_force"
    assert "the neurons in force stay" in problem["text"]
    assert list(desk.fleet.nodes) == ["a"]
    [(_, summary, outcome)] = await desk.audit()
    assert outcome == "refused; the neurons in force stay"
    assert str(desk.path) in summary

    desk.save(desk.tables(a="one"))
    assert (await desk.admin.post("/admin/reload")).json()["neurons"]["result"] == "unchanged"
    assert all(problem["subject"] != str(desk.path) for problem in (await desk.admin.get("/health")).json()["problems"])


async def test_neurons_over_the_network(desk):
    """Read with masked secrets, changed with the hash of what was read; comments and secrets stay."""
    desk.save("# ours\n" + desk.tables(a="one") + 'token = "hush-hush"   # from the safe\n')
    await until(lambda: desk.cortex.gateway.neuron_store.neurons[0].token == "hush-hush")
    await desk.fleet_is(a="one")

    read = await desk.admin.get("/admin/neurons")
    assert "hush" not in read.text
    assert 'token = "***"   # from the safe\n' in read.text
    assert read.headers["etag"] == f'"{digest_of(desk.path.read_bytes())}"'

    wanted = read.text + desk.tables(b="two")
    put = await desk.admin.put("/admin/neurons", content=wanted, headers={"if-match": read.headers["etag"]})
    assert (put.status_code, put.json()["result"], put.json()["diff"]) == (
        200,
        "applied",
        {"added": ["b"], "removed": [], "changed": {}},
    )
    await desk.fleet_is(a="one", b="two")
    assert desk.path.read_text() == wanted.replace("***", "hush-hush")
    assert (await desk.audit())[-1] == ("admin", f"+b ({desk.endpoints['two']})", "in force")
    assert put.headers["etag"] == (await desk.admin.get("/admin/neurons")).headers["etag"]


async def test_earlier_version_is_restored(desk):
    """The one before, one by its hash, or the one in force over a faulty file; secrets come back with it."""
    first = digest_of(desk.path.read_bytes())
    nothing = await desk.admin.post("/admin/neurons/rollback")
    assert (nothing.status_code, "no version before the present one" in nothing.text) == (404, True)
    desk.save(desk.tables(a="two").replace("\nendpoint", '\ntoken = "hush-hush"\nendpoint'))
    await desk.fleet_is(a="two")
    second = digest_of(desk.path.read_bytes())
    desk.save(desk.tables(a="three"))
    await desk.fleet_is(a="three")
    assert len(await desk.audit()) == 2

    async def roll_back(**body):
        answer = await desk.admin.post("/admin/neurons/rollback", json=body)
        return answer.json().get("written", answer.status_code)

    assert await roll_back() == second
    await desk.fleet_is(a="two")
    assert desk.path.read_text().count("hush-hush") == 1
    assert await roll_back(to=first[:8]) == first
    await desk.fleet_is(a="one")
    desk.save("[[neurons]\n")
    assert (await desk.admin.post("/admin/reload")).status_code == 422
    assert await roll_back() == first
    assert digest_of(desk.path.read_bytes()) == first
    assert await roll_back(to="f" * 64) == 404
    assert await roll_back(to="../../etc") == 404
    assert (await desk.audit())[-1][0] == "admin"


@pytest.mark.parametrize(
    ("change", "if_match", "status", "text"),
    [
        ("", None, 428, "If-Match"),
        ("", '"0123"', 412, "the file on disk differs from the one that If-Match names"),
        ("nonsense", "*", 422, "neurons.toml:4: not TOML"),
        ('[[neurons]]\nname = "a"\nendpoint = "http://x"\n', "*", 422, '"a" is already used by an earlier entry'),
        ('[[neurons]]\nname = "b"\nendpoint = "http://x"\ntoken = "***"\n', "*", 422, "b: token is ***"),
    ],
)
async def test_change_that_is_refused_changes_nothing(desk, change, if_match, status, text):
    before = desk.path.read_bytes()
    headers = {} if if_match is None else {"if-match": if_match}
    answer = await desk.admin.put("/admin/neurons", content=desk.tables(a="one") + change, headers=headers)

    assert answer.status_code == status
    assert text in answer.json()["error"]["message"]
    assert desk.path.read_bytes() == before
    assert list(desk.fleet.nodes) == ["a"]


async def test_neurons_of_cortex_toml_cannot_be_changed(tmp_path):
    """409, with what to do."""
    async with (
        running_gateway(tmp_path) as cortex,
        httpx.AsyncClient(base_url=f"http://{cortex.addresses.metrics}", headers=TOKEN, timeout=SAFETY_NET_S) as admin,
    ):
        for answer in (
            await admin.get("/admin/neurons"),
            await admin.put("/admin/neurons", content="neurons = []", headers={"if-match": "*"}),
        ):
            assert answer.status_code == 409
            assert "neurons_config" in answer.json()["error"]["message"]


async def test_drain_ends_with_its_neuron(desk):
    """A neuron of that name which comes later is not drained."""
    desk.save(desk.tables(a="one", b="two"))
    await desk.fleet_is(a="one", b="two")
    assert (await desk.admin.post("/admin/nodes/b/drain")).json()["state"] == "drained"
    desk.save(desk.tables(a="one"))
    await desk.fleet_is(a="one")
    assert (await desk.admin.get("/admin/nodes/b")).status_code == 404
    await until(lambda: '"b"' not in desk.cortex.gateway.drain_store.path.read_text())

    desk.save(desk.tables(a="one", b="two"))
    await desk.fleet_is(a="one", b="two")
    assert (await desk.admin.get("/admin/nodes/b")).json()["state"] == "open"
