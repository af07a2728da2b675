"""An invalid models.toml of every kind: what stays in force, where the fault shows, and that it clears."""

import shutil

import httpx
import pytest
import structlog
import trio
from click.testing import CliRunner
from fakes.patience import until
from fakes.running import MODELS_TOML, PROBE, SMALL, running_gateway

from gateway.cli import main
from gateway.files.config_file import FILE_LIMIT_BYTES

CHAT = "/v1/chat/completions"


def rename_over(path, content):
    """As an editor does it."""
    new = path.with_suffix(".new")
    new.write_bytes(content)
    new.rename(path)


def in_place(path, content):
    """Truncate, then write."""
    path.write_bytes(content)


def a_directory(path):
    """Unreadable, for root too."""
    path.unlink()
    path.mkdir()


def a_link_to_nowhere(path):
    path.unlink()
    path.symlink_to("not-here.toml")


GOOD = MODELS_TOML.encode()
TYPO = GOOD.replace(b"vram_mb = 4096", b"vram_bm = 4096")
SPOILED = {
    "typo": (lambda path: rename_over(path, TYPO), 10, "models[0].vram_bm"),
    "typo in place": (lambda path: in_place(path, TYPO), 10, "models[0].vram_bm"),
    "empty": (lambda path: rename_over(path, b""), None, None),
    "emptied": (lambda path: in_place(path, b""), None, None),
    "half-written": (lambda path: in_place(path, GOOD[: GOOD.index(b"harness") + 12]), 9, None),
    "not text": (lambda path: rename_over(path, b"\x00\xff" * 100), 1, None),
    "huge": (lambda path: rename_over(path, b"#" * (FILE_LIMIT_BYTES + 1)), None, None),
    "deleted": (lambda path: path.unlink(), None, None),
    "unreadable": (a_directory, None, None),
    "broken link": (a_link_to_nowhere, None, None),
    "directory gone": (lambda path: shutil.rmtree(path.parent), None, None),
}


def remove(path):
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


async def status_of(running):
    """The output of `cortex status`."""
    arguments = ["status", "-e", running.url, "--admin", running.metrics_url.removesuffix("/metrics")]
    result = await trio.to_thread.run_sync(lambda: CliRunner().invoke(main.main, arguments, env={"COLUMNS": "200"}))
    assert result.exit_code == 0
    return result.output


@pytest.mark.parametrize("kind", SPOILED)
async def test_last_good_file_stays_in_force_and_faults_show_until_corrected(tmp_path, kind):
    """The alias still works. Log, health, metrics and status show line and key; all clear after the correction."""
    spoil, line, key = SPOILED[kind]
    folder = tmp_path / "conf"
    folder.mkdir()
    with structlog.testing.capture_logs() as logs:
        async with (
            running_gateway(folder) as running,
            httpx.AsyncClient(base_url=running.url, trust_env=False, timeout=60) as http,
        ):
            catalogue_store = running.gateway.catalogue_store

            async def answered():
                answer = await http.post(CHAT, json={"model": "helexa/small", "messages": PROBE})
                return answer.status_code, answer.headers["x-cortex-model"]

            def reported():
                return [(fault.line, fault.key) for fault in catalogue_store.last_error or ()]

            spoil(running.models_toml)
            await until(lambda: (line, key) in reported())  # the gateway may first see the file while it is still empty
            health = (await http.get("/health")).json()
            assert "file_not_in_force" in [problem["code"] for problem in health["problems"]]
            assert (health["status"], health["catalogue"]["generation"]) == ("impaired", 1)
            assert (line, key) in [(fault["line"], fault["key"]) for fault in health["catalogue"]["error"]["faults"]]
            assert "cortex_catalogue_last_reload_success 0.0" in (await http.get(running.metrics_url)).text
            shown = await status_of(running)
            assert shown.count("generation 1 stays in force: ") == 1
            assert key is None or key in shown
            assert await answered() == (200, SMALL)

            folder.mkdir(exist_ok=True)
            remove(running.models_toml)
            rename_over(running.models_toml, GOOD)
            await until(lambda: catalogue_store.last_error is None)
            health = (await http.get("/health")).json()
            assert "file_not_in_force" not in [problem["code"] for problem in health["problems"]]
            assert health["catalogue"]["error"] is None
            assert "cortex_catalogue_last_reload_success 1.0" in (await http.get(running.metrics_url)).text
            assert "stays in force" not in await status_of(running)
            assert await answered() == (200, SMALL)
            assert catalogue_store.current.generation == 1

    rejected = [fault for entry in logs if entry["event"] == "catalogue_rejected" for fault in entry["faults"]]
    assert (line, key) in [(fault["line"], fault["key"]) for fault in rejected]
    assert [entry["event"] for entry in logs if entry["event"] == "catalogue_recovered"] == ["catalogue_recovered"]
