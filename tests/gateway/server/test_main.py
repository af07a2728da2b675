"""The process: what signals do, and that a crash of any background task ends it."""

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from fakes.patience import SAFETY_NET_S, until
from fakes.process import environment, running_cortex, running_program

from gateway.server import main
from gateway.server.listen import STUCK_READER_MS

CONFIG = """
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
"""


@pytest.fixture
def config(tmp_path):
    """A configuration without neurons, beside a catalogue without models."""
    (tmp_path / "models.toml").write_text("models = []\n")
    (tmp_path / "cortex.toml").write_text(CONFIG)
    return tmp_path / "cortex.toml"


def listening(process):
    """The fields of its `listening` log line."""
    for line in process.popen.stderr:
        fields = json.loads(line)
        if fields["event"] == "listening":
            return fields
    raise AssertionError("the process ended without listening")


async def test_sighup_reloads_the_file(config):
    """Also if it is unchanged; the reload is counted and logged."""
    with running_cortex("serve", "-c", config) as process:
        metrics = f"http://{listening(process)['metrics']}/metrics"

        def is_counted():
            return 'cortex_catalogue_reloads_total{result="unchanged"} 1.0' in httpx.get(metrics, timeout=60).text

        assert not is_counted()
        process.popen.send_signal(signal.SIGHUP)
        await until(is_counted)
        fields = json.loads(process.log_line("looked_at_sighup"))
        assert (fields["result"], fields["generation"]) == ("unchanged", 1)
        process.popen.send_signal(signal.SIGTERM)
        assert process.end()[0] == 0


HANGING_FILE = """
import sys
import time
from pathlib import Path

from gateway.aliases import catalogue_store
from gateway.config import load
from gateway.server import main
from gateway.server.gateway import Gateway
from gateway.telemetry import log

read = catalogue_store.read_config_file
hangs, noticed = (Path(sys.argv[1]).with_name(name) for name in ("hangs", "noticed"))


def read_unless_it_hangs(path):
    while hangs.exists():
        noticed.touch()
        time.sleep(0.05)
    return read(path)


catalogue_store.read_config_file = read_unless_it_hangs
loaded = load.load(Path(sys.argv[1]), {}).settings
log.configure(loaded.log)
sys.exit(main.run(Gateway(loaded)))
"""


async def test_hanging_file_system_does_not_delay_exit(config):
    """As with an NFS server that does not answer: neither the file watch nor a SIGHUP delays SIGTERM."""
    with running_program(HANGING_FILE, config) as process:
        listening(process)
        config.with_name("hangs").touch()
        await until(config.with_name("noticed").exists)
        process.popen.send_signal(signal.SIGHUP)
        process.popen.send_signal(signal.SIGTERM)
        code, _, err = process.end()

    assert code == 0
    assert "Traceback" not in err


async def test_directory_name_need_not_be_utf_8(tmp_path):
    """Log and `/health` replace the bytes. File events are not available there, so polling finds changes."""
    home = tmp_path / os.fsdecode(b"caf\xe9")
    home.mkdir()
    (home / "models.toml").write_text("models = []\n")
    (home / "cortex.toml").write_text(CONFIG)
    with running_cortex("serve", "-c", home / "cortex.toml") as process:
        health = f"http://{listening(process)['api']}/health"
        (home / "models.toml").write_text("broken\n")
        await until(lambda: httpx.get(health, timeout=60).json()["catalogue"]["error"])
        process.log_line("catalogue_rejected")
        process.popen.send_signal(signal.SIGTERM)
        assert process.end()[0] == 0


def test_permanent_objects_are_frozen_for_the_garbage_collector(monkeypatch):
    """Otherwise each full collection would stall every stream to examine modules that are never freed."""
    seen, thresholds = [], gc.get_threshold()
    gc.unfreeze()  # what tests/conftest.py froze
    monkeypatch.setattr(main.trio, "run", lambda *_: seen.append((gc.get_freeze_count(), gc.get_threshold())) or 0)
    try:
        assert main.run(None) == 0
    finally:
        gc.freeze()
        gc.set_threshold(*thresholds)

    assert seen[0][0] > 10_000
    assert seen[0][1][0] == main.YOUNG_OBJECTS


def test_second_signal_cuts_at_once(config):
    """Exit code 130, although the drain could take minutes, and no traceback."""
    with running_cortex("serve", "-c", config) as process:
        api = listening(process)["api"]
        host, _, port = api.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=SAFETY_NET_S) as half_a_request:
            half_a_request.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n{")
            process.popen.send_signal(signal.SIGINT)
            for line in process.popen.stderr:
                if json.loads(line)["event"] == "draining":
                    break
            process.interrupt()
            code, _, err = process.end()

    assert code == 130
    assert "Traceback" not in err


def unsent_bytes(port, peer):
    """Bytes in the kernel's send queue of this connection (proc(5), `tx_queue`)."""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if (int(local.partition(":")[2], 16), int(remote.partition(":")[2], 16)) == (port, peer):
            return int(queues.partition(":")[0], 16)
    return 0


def test_scraper_that_reads_nothing_does_not_delay_exit(config):
    """The server cuts it off, without waiting a minute for the kernel to give it up."""
    with running_cortex("serve", "-c", config) as process, socket.socket() as scraper:
        host, _, port = listening(process)["metrics"].rpartition(":")
        scraper.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        scraper.connect((host, int(port)))
        scraper.setblocking(False)
        with contextlib.suppress(BlockingIOError):  # as many as the sockets and the server accept
            for _ in range(3_000):
                scraper.send(b"GET /metrics HTTP/1.1\r\nhost: a\r\n\r\n")
        seen = [0, 1]
        while len(set(seen[-5:])) > 1 or seen[-1] == 0:  # until the server cannot send any more
            time.sleep(0.1)
            seen.append(unsent_bytes(int(port), scraper.getsockname()[1]))
        began = time.monotonic()
        process.popen.send_signal(signal.SIGTERM)
        code, _, _ = process.end()

    assert code == 0
    assert time.monotonic() - began < STUCK_READER_MS / 1000 / 2


CRASH = """
import sys
from pathlib import Path

import trio
from gateway.config import load
from gateway.server import main
from gateway.server.gateway import Gateway
from gateway.{module} import {owner}


async def crash(*_, task_status=trio.TASK_STATUS_IGNORED, **__):
    task_status.started()
    await trio.sleep(0.05)
    raise {error}


{owner}.{method} = crash
sys.exit(main.run(Gateway(load.load(Path(sys.argv[1]), {{}}).settings)))
"""


@pytest.mark.parametrize("error", ["ZeroDivisionError", "OSError(5, 'a disk that dies')"])
@pytest.mark.parametrize(
    ("module", "owner", "method"),
    [
        ("http.pool", "UpstreamPool", "run"),
        ("fleet.control.poller", "Poller", "run"),
        ("fleet.loading.scheduler", "LoadScheduler", "run"),
        ("aliases.catalogue_store", "CatalogueStore", "watch"),
        ("http.server", "HttpServer", "serve"),
    ],
)
def test_crash_of_a_background_task_ends_the_process_loudly(config, module, owner, method, error):
    """With a traceback and exit code 1, on which systemd restarts it."""
    program = CRASH.format(module=module, owner=owner, method=method, error=error)
    done = subprocess.run(
        [sys.executable, "-c", program, str(config)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=SAFETY_NET_S,
        check=False,
    )

    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert error.partition("(")[0] in done.stderr
