"""What operators see during an outage: /health, /ready, `cortex status` and exit codes, for each outage.

What is observed here is the table in docs/reliability.md; `--write-docs` puts it there.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio
from click.testing import CliRunner
from fakes.patience import SAFETY_NET_S, until
from fakes.running import LARGE, MIDDLE, SMALL, Running, running_gateway

from gateway.aliases.files import audit_log
from gateway.cli.main import main
from gateway.files import atomic_write
from gateway.telemetry import log
from neuron.simulated.faults import EndpointFails, LoadFails, Unservable
from neuron.simulated.fleet import neuron

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
REWRITE = "pytest tests/e2e/test_outages.py --write-docs"
BEGIN, END = "<!-- begin: written by tests/e2e/test_outages.py --write-docs -->", "<!-- end of outages -->"
HEAD = (
    "| outage | `/health` | problems | `/ready` | request for `small` | for `large` | `check` | `audit verify` |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
)

MODELS_TOML = f"""
[aliases]
small = "{SMALL}"
large = "{LARGE}"

[[models]]
id = "{SMALL}"
harness = "llamacpp"
vram_mb = 4096

[[models]]
id = "{MIDDLE}"
harness = "llamacpp"
vram_mb = 7168

[[models]]
id = "{LARGE}"
harness = "llamacpp"
vram_mb = 20480
pinned_on = ["beast"]
"""

TOKEN = {"authorization": "Bearer secret"}


@dataclass
class Outage:
    """What an outage is done to: a gateway, an operator's client, and the test's monkeypatch."""

    running: Running
    admin: httpx.AsyncClient
    patch: pytest.MonkeyPatch

    async def health(self):
        return (await self.admin.get("/health")).json()

    async def has_problem(self, code):
        while code not in [problem["code"] for problem in (await self.health())["problems"]]:
            await trio.sleep(0.01)

    async def drain(self, *names):
        for name in names:
            (await self.admin.post(f"/admin/nodes/{name}/drain")).raise_for_status()

    async def take_down(self, *names):
        for each in self.running.neurons:
            if each.name in names:
                each.faults.add(EndpointFails(path="/models"))
        nodes = self.running.gateway.fleet.nodes
        await until(lambda: not any(nodes[name].healthy for name in names))

    async def reloaded(self):
        await self.admin.post("/admin/reload")


async def nothing(_: Outage) -> None:
    pass


async def one_drained(outage: Outage) -> None:
    await outage.drain("mule")


async def all_drained(outage: Outage) -> None:
    await outage.drain("beast", "mule")


async def host_down(outage: Outage) -> None:
    await outage.take_down("beast")


async def all_down(outage: Outage) -> None:
    await outage.take_down("beast", "mule")


async def one_down_the_other_drained(outage: Outage) -> None:
    await outage.take_down("beast")
    await outage.drain("mule")


async def unknown_target(outage: Outage) -> None:
    outage.running.save(
        MODELS_TOML.replace(f'small = "{SMALL}"', 'small = { target = "Qwen/Qwen3-88B", swap = "cold" }')
    )
    await outage.reloaded()


async def deleted(outage: Outage) -> None:
    outage.running.models_toml.unlink()
    await outage.reloaded()


async def emptied(outage: Outage) -> None:
    outage.running.models_toml.write_bytes(b"")
    await outage.reloaded()


async def broken(outage: Outage) -> None:
    outage.running.save(MODELS_TOML + "[[models]\n")
    await outage.reloaded()


async def neurons_broken(outage: Outage) -> None:
    outage.running.models_toml.with_name("neurons.toml").write_text("[[neurons]\n")
    await outage.reloaded()


async def disk_full(outage: Outage) -> None:
    def refuse(*arguments: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(outage.running.gateway.catalogue_files.state_dir))

    outage.patch.setattr(audit_log, "_write_all", refuse)
    outage.patch.setattr(atomic_write, "write", refuse)
    outage.running.save(MODELS_TOML + "# a comment\n")
    await outage.reloaded()
    await outage.drain("mule")
    await outage.has_problem("audit_unwritable")


async def audit_unwritable(outage: Outage) -> None:
    path = outage.running.gateway.catalogue_files.audit_log.path
    await until(path.exists)
    path.unlink()
    path.mkdir()
    outage.running.save(MODELS_TOML + "# a comment\n")
    await outage.reloaded()
    await outage.has_problem("audit_unwritable")


async def audit_emptied(outage: Outage) -> None:
    path = outage.running.gateway.catalogue_files.audit_log.path
    await until(path.exists)
    await until(lambda: outage.running.gateway.auditor.status()["last"] == 1)
    path.write_bytes(b"")


async def unservable(outage: Outage) -> None:
    outage.running.neurons[0].faults.add(Unservable(model=LARGE))
    await outage.has_problem("model_unservable")


async def swap_failed(outage: Outage) -> None:
    for each in outage.running.neurons:
        each.faults.add(LoadFails())
    target = f'small = {{ target = "{MIDDLE}", warm_deadline_seconds = 0.5 }}'
    outage.running.save(MODELS_TOML.replace(f'small = "{SMALL}"', target))
    await outage.has_problem("swap_failed")


@dataclass(frozen=True)
class Row:
    label: str
    act: Callable[[Outage], Awaitable[None]]


ROWS = (
    Row("none", nothing),
    Row("one of two neurons drained", one_drained),
    Row("all neurons drained", all_drained),
    Row("one of two hosts down", host_down),
    Row("all hosts down", all_down),
    Row("one host down, the other drained", one_down_the_other_drained),
    Row("an alias's target is unknown", unknown_target),
    Row("`models.toml` deleted", deleted),
    Row("`models.toml` emptied", emptied),
    Row("`models.toml` broken", broken),
    Row("the file of `neurons_config` broken", neurons_broken),
    Row("disk full, one neuron drained", disk_full),
    Row("audit log cannot be written", audit_unwritable),
    Row("audit log emptied", audit_emptied),
    Row("a neuron cannot serve a model it holds", unservable),
    Row("an alias's new target cannot be loaded", swap_failed),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
async def test_operator_sees_what_the_table_in_the_docs_says(row, tmp_path, monkeypatch, observed):
    """`/health`, `/ready`, `status` and exit codes tell the truth, and agree with each other."""
    neurons = [neuron("beast", [24576], [LARGE], speed=100), neuron("mule", [12288], [SMALL], speed=100)]
    async with (
        running_gateway(tmp_path, neurons, models_toml=MODELS_TOML, neurons_file=True) as running,
        httpx.AsyncClient(
            base_url=f"http://{running.addresses.metrics}", headers=TOKEN, trust_env=False, timeout=SAFETY_NET_S
        ) as admin,
    ):
        outage = Outage(running, admin, monkeypatch)
        with trio.fail_after(SAFETY_NET_S):
            await row.act(outage)
        health = await outage.health()
        ready = await admin.get(f"{running.url}/ready")
        requests = [await _ask(admin, running.url, alias) for alias in ("small", "large")]
        config = _write_config(tmp_path)
        monkeypatch.setattr(log, "configure", lambda _: None)  # the captured stderr has no file descriptor
        status, check, verify = [
            await trio.to_thread.run_sync(_run, arguments)
            for arguments in (
                ["status", "-e", running.url],
                ["check", "-c", str(config)],
                ["audit", "verify", "-c", str(config)],
            )
        ]
    _assert_status_agrees(status, health)
    problems = ", ".join(f"`{problem['code']}` {_short(problem['subject'])}" for problem in health["problems"])
    cells = [
        *(row.label, health["status"], problems or "-", str(ready.status_code)),
        *(*requests, str(check.exit_code), str(verify.exit_code)),
    ]
    line = f"| {' | '.join(cells)} |"
    observed[row.label] = line
    if not observed.writing:
        assert line in DOCUMENT.read_text().splitlines(), f"{REWRITE} shows what has changed"


def test_table_in_the_docs_has_no_other_rows(request):
    """Every row of the table is one that a test has observed."""
    if request.config.getoption("--write-docs"):
        pytest.skip("it is being written")
    table = DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in lines] == [row.label for row in ROWS]


async def _ask(client, url, alias):
    body = {"model": alias, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1}
    response = await client.post(f"{url}/v1/chat/completions", json=body)
    return str(response.status_code)


def _write_config(folder):
    """The cortex.toml that this gateway could have been started with."""
    path = folder / "cortex.toml"
    path.write_text('models_config = "models.toml"\nneurons_config = "neurons.toml"\n')
    return path


def _run(arguments):
    return CliRunner().invoke(main, arguments)


def _assert_status_agrees(status, health):
    """`cortex status` needs no token to show the status and then every problem. It exits with 0."""
    assert status.exit_code == 0, status.output
    # The gateway in this process may have logged to the same stdout meanwhile.
    head, *lines = [line for line in status.stdout.splitlines() if not re.match(r"\d{4}-\d\d-\d\d ", line)]
    assert head.startswith(health["status"])
    for problem in health["problems"]:  # those with the same code and text share a line
        text = json.dumps(problem["text"])[1:-1].replace('\\"', '"')
        of_code = [line.strip() for line in lines if line.split()[:1] == [problem["code"]]]
        assert any(problem["subject"] in line.partition("  since ")[0] and text in line for line in of_code)
    down = {problem["subject"] for problem in health["problems"] if problem["code"] == "node_down"}
    for line in lines:
        if line.split()[1:2] and line.split()[1] in down:
            assert " loaded" not in line


def _short(subject):
    """Paths differ from run to run."""
    return subject.rpartition("/")[2] if subject.startswith("/") else subject


class Observed(dict):
    """Lines by label. `writing`: they are to become the document's."""

    writing = False


@pytest.fixture(scope="module")
def observed(request):
    """What has been observed so far; in the end it goes into the document if that was asked for."""
    seen = Observed()
    seen.writing = request.config.getoption("--write-docs")
    yield seen
    if seen.writing:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        rows = "\n".join(seen[row.label] for row in ROWS if row.label in seen)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{HEAD}{rows}\n\n{END}{rest.partition(END)[2]}")
