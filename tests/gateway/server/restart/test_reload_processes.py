"""Reloads and faulty files, with real processes: nothing stops a gateway that runs."""

import os
import signal

import httpx
import pytest
from fakes.patience import SAFETY_NET_S, until
from fakes.process import a_port_of_our_own
from fakes.supervised import ended, stopped, supervised

CONFIG = """
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:{api}"
metrics_listen = "127.0.0.1:{metrics}"
[[neurons]]
name = "down"
endpoint = "http://127.0.0.1:9"
"""


@pytest.mark.slow
async def test_faulty_files_end_no_gateway(tmp_path):
    """Neither SIGUSR2 nor `--takeover` nor SIGHUP does; each says what is wrong. The manager learns of each reload."""
    api, metrics = a_port_of_our_own(), a_port_of_our_own()
    config = tmp_path / "cortex.toml"
    config.write_text(CONFIG.format(api=api, metrics=metrics))
    (tmp_path / "models.toml").write_text("models = []\n")
    async with supervised(tmp_path, config) as manager:
        process = await manager.start(WATCHDOG_USEC="60000000")
        (tmp_path / "models.toml").write_text("models = [\n")

        process.send_signal(signal.SIGHUP)
        await until(lambda: manager.sent(process.pid).count("READY=1") == 2)
        await until(lambda: "looked_at_sighup" in manager.log)  # lines of this level come in batches

        process.send_signal(signal.SIGUSR2)
        await until(lambda: manager.sent(process.pid).count("READY=1") == 3)
        await until(lambda: '"successor_failed"' in manager.log and "error: " in manager.log)

        assert await ended(await manager.spawn("--takeover")) == 1
        second = await manager.spawn()
        (tmp_path / "models.toml").write_text("models = []\n")
        assert await ended(second) == 1

        third = await manager.spawn()  # without --takeover
        assert await ended(third) == 1
        assert "cortex serve --takeover" in manager.log
        async with httpx.AsyncClient(trust_env=False, timeout=SAFETY_NET_S) as client:
            assert (await client.get(f"http://127.0.0.1:{api}/health")).status_code == 200
        states = [line for line in manager.sent(process.pid) if line in {"READY=1", "RELOADING=1"}]
        assert states == ["READY=1", "RELOADING=1", "READY=1", "RELOADING=1", "READY=1"]
        assert "WATCHDOG=1" in manager.sent(process.pid)
        assert manager.main_pid == process.pid
        os.kill(process.pid, 0)
        assert await stopped(process) == 0
        assert "Traceback" not in manager.log
