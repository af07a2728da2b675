"""`cortex demo`: the gateway and three simulated neurons in one nursery, and commands to try on them."""

from __future__ import annotations

import errno
import secrets
import shlex
import signal
import socket
import sys
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import trio

from gateway.config import load
from gateway.server.gateway import Gateway
from gateway.server.listen import Addresses, CannotListen
from gateway.server.main import SECOND_SIGNAL_EXIT_CODE
from gateway.server.serve import serve
from gateway.telemetry import log
from neuron.simulated.fleet import demo_fleet
from neuron.simulated.neuron import SimNeuron

__all__ = ["run"]

MARK = "# Written by `cortex demo`, and anew each time it starts."
MODELS_TOML = f"""\
{MARK}
# Edit and save: the gateway notices within 100 ms. A mistake is reported and changes nothing.
[aliases]
"helexa/small" = "Qwen/Qwen3-1.7B"
"helexa/balanced" = "Qwen/Qwen3-8B"
"helexa/large" = "Qwen/Qwen3.6-27B"

[[models]]
id = "Qwen/Qwen3-1.7B"
harness = "llamacpp"
vram_mb = 4096

[[models]]
id = "Qwen/Qwen3-8B"
harness = "llamacpp"
vram_mb = 7168

[[models]]
id = "Qwen/Qwen3-14B"        # loaded nowhere: ask for it and watch a cold start
harness = "llamacpp"
vram_mb = 12288

[[models]]
id = "Qwen/Qwen3.6-27B"
harness = "llamacpp"
vram_mb = 20480
min_device_vram_mb = 24000
"""

PORT_ATTEMPTS = 5
DRAIN_S = 10

WELCOME = """
cortex demo: {api}   (metrics {metrics})
three simulated neurons: beast 2x24 GB, benjy 16 GB, quadbrat 8 GB
files: {folder}

  1  what can be asked for
     curl -s {api}/v1/models | {python} -m json.tool --no-ensure-ascii | grep '"id"'

  2  ask by tier, and see it stream
     curl -sN {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/small","stream":true,"messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  3  swap what helexa/small points at, in one line, while anything runs
     sed -i 's#^"helexa/small" = .*#"helexa/small" = "Qwen/Qwen3.6-27B"#' {models}

  4  some seconds later, when that model has answered cortex: the same question; x-cortex-model says who it is now
     curl -si {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/small","messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  5  the fleet at a glance
     CORTEX_ADMIN__TOKEN={token} {cortex} status -e {api} --admin {admin}

Ctrl-C ends it.
"""  # noqa: E501 - commands to copy are one line each


def run(folder: Path | None, *, speed: float, port: int) -> int:
    """Run the demo until Ctrl-C; returns the exit code.

    Args:
        folder: Where `models.toml` and `cortex.toml` go, kept afterwards; None makes one under the temporary directory.
        speed: Of the simulated neurons, above 0; 1 takes as long as the real models did.
        port: Of the API on 127.0.0.1, metrics one above it; if 0, or either is taken, the kernel chooses both.
    """
    exit_code = 1
    try:
        home = _make_home(folder)
        exit_code = _on_free_ports(home, speed, port)
    except* OSError as group:
        click.echo(f"cortex demo: {_first(group)}", err=True)
    return exit_code


def _on_free_ports(home: Path, speed: float, port: int) -> int:
    """Run on ports that are free, and on others if somebody takes one between our choice and our listening."""
    ports = _free_ports(port)
    for _ in range(PORT_ATTEMPTS - 1):
        try:
            return trio.run(_demo, home, demo_fleet(speed), ports)
        except* CannotListen as group:
            if port:
                click.echo(f"{_first(group)}; using free ports", err=True)
            ports = _bound(0, 0)
    return trio.run(_demo, home, demo_fleet(speed), ports)


def _first(group: BaseExceptionGroup[OSError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


# Running ..............................................................................................................


async def _demo(home: Path, neurons: list[SimNeuron], ports: tuple[int, int]) -> int:
    stop = _Stop()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop.watch, nursery.cancel_scope)
        endpoints = {neuron.name: await nursery.start(neuron.serve) for neuron in neurons}
        config = home / "cortex.toml"
        token = secrets.token_urlsafe(12)
        await trio.to_thread.run_sync(_write_files, config, _cortex_toml(endpoints, ports, token))
        gateway = Gateway(load.load(config, {}).settings)
        log.configure(gateway.settings.log)
        async with trio.open_nursery() as serving:
            addresses: Addresses = await serving.start(partial(serve, gateway, stop=stop.asked.wait))
            click.echo(_welcome(addresses, home / "models.toml", token))
            await stop.asked.wait()
            click.echo(f"\nstopping; what runs has {DRAIN_S} s to finish (Ctrl-C again: at once)")
        nursery.cancel_scope.cancel()  # the gateway has drained: the neurons may go
    return stop.exit_code


@dataclass(slots=True)
class _Stop:
    """The first signal asks for an end, the second makes one."""

    asked: trio.Event = field(default_factory=trio.Event)
    exit_code: int = 0

    async def watch(
        self, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.asked.is_set():
                    self.exit_code = SECOND_SIGNAL_EXIT_CODE
                    everything.cancel()
                self.asked.set()


def _welcome(addresses: Addresses, models: Path, token: str) -> str:
    return WELCOME.format(
        api=addresses.url,
        admin=f"http://{addresses.metrics}",
        metrics=f"http://{addresses.metrics}/metrics",
        folder=models.parent,
        models=shlex.quote(str(models)),
        python=shlex.quote(sys.executable),
        cortex=shlex.quote(str(Path(sys.executable).with_name("cortex"))),
        token=token,
    )


# Ports and files ......................................................................................................


def _free_ports(wanted: int) -> tuple[int, int]:
    """Ports for API and metrics. Nobody holds them until the gateway does."""
    if wanted:
        try:
            return _bound(wanted, wanted + 1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            click.echo(f"port {wanted} or {wanted + 1} is taken by another process; using free ones", err=True)
    return _bound(0, 0)


def _bound(api: int, metrics: int) -> tuple[int, int]:
    """Both ports, bound for a moment at the same time, so they exist, are free and differ."""
    with socket.socket() as one, socket.socket() as other:
        for sock, port in ((one, api), (other, metrics)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway will: a port just left is free
            sock.bind(("127.0.0.1", port))
        return one.getsockname()[1], other.getsockname()[1]


def _make_home(folder: Path | None) -> Path:
    """The folder, there now, with nothing in it that the demo would overwrite but did not write.

    Raises:
        OSError: It cannot be made, or holds somebody's own configuration.
    """
    home = (folder or Path(tempfile.mkdtemp(prefix="cortex-demo-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    for path in (home / "cortex.toml", home / "models.toml"):
        if path.exists() and not path.read_bytes().startswith(MARK.encode()):
            raise FileExistsError(f"{path} is not the demo's, and stays as it is; --dir chooses another folder")
    return home


def _cortex_toml(neurons: dict[str, str], ports: tuple[int, int], token: str) -> str:
    api, metrics = ports
    lines = [
        MARK + " cortex.example.toml explains every key.",
        'models_config = "models.toml"',
        "",
        "[gateway]",
        f'listen = "127.0.0.1:{api}"',
        f'metrics_listen = "127.0.0.1:{metrics}"',
        f"drain_seconds = {DRAIN_S}",
        "",
        "[limits]",
        "connections = 256   # as many as the usual limit of 1,024 open files allows",
        "",
        "[admin]",
        f'token = "{token}"',
        "",
        "[log]",
        'level = "warning"   # "info" shows every request',
    ]
    for name, endpoint in neurons.items():
        lines += ["", "[[neurons]]", f'name = "{name}"', f'endpoint = "{endpoint}"']
    return "\n".join(lines) + "\n"


def _write_files(config: Path, text: str) -> None:
    config.write_text(text, encoding="utf-8")
    config.with_name("models.toml").write_text(MODELS_TOML, encoding="utf-8")
