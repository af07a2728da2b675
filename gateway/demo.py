"""`cortex demo`: the gateway and three simulated neurons in one nursery, and commands to try on them."""

from __future__ import annotations

import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import click
import trio

from gateway import log, serve, settings
from gateway.sim.fleet import demo_fleet
from gateway.sim.neuron import SimNeuron

__all__ = ["run"]

MODELS_TOML = """\
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

WELCOME = """
cortex demo: {api}   (metrics {metrics})
three simulated neurons: beast 2x24 GB, benjy 16 GB, quadbrat 8 GB; files in {folder}

  1  what can be asked for
     curl -s {api}/v1/models | {python} -m json.tool --no-ensure-ascii | grep '"id"'

  2  ask by tier, and see it stream
     curl -sN {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/small","stream":true,"messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  3  swap what helexa/small points at, in one line, while anything runs
     sed -i 's#^"helexa/small" = .*#"helexa/small" = "Qwen/Qwen3.6-27B"#' {models}

  4  the same question, the other model: x-cortex-model says so
     curl -si {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/small","messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  5  the fleet at a glance
     {cortex} status -e {api}

Ctrl-C ends it.
"""  # noqa: E501 - commands to copy are one line each


def run(folder: Path | None, *, speed: float, port: int) -> int:
    """Run the demo until Ctrl-C; returns the exit code.

    Args:
        folder: Where `models.toml` and `cortex.toml` go, kept afterwards; None makes one under the temporary directory.
        speed: Of the simulated neurons; 1 takes as long as the real models did.
        port: Of the API on 127.0.0.1, metrics one above it; 0 lets the kernel choose both.
    """
    if speed <= 0:
        raise click.BadParameter("must be above 0", param_hint="--speed")
    home = folder or Path(tempfile.mkdtemp(prefix="cortex-demo-"))
    home.mkdir(parents=True, exist_ok=True)
    exit_code = 1
    try:
        trio.run(_demo, home.resolve(), demo_fleet(speed), port)
        exit_code = 0
    except* OSError as group:
        click.echo(f"cortex demo: {_first(group)}; --port chooses another", err=True)
    return exit_code


def _first(group: BaseExceptionGroup[OSError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _demo(home: Path, neurons: list[SimNeuron], port: int) -> None:
    async with trio.open_nursery() as nursery:
        stop = trio.Event()
        await nursery.start(_set_on_signal, stop)
        endpoints = [await nursery.start(partial(_serve_neuron, neuron)) for neuron in neurons]
        config, models = home / "cortex.toml", home / "models.toml"
        names = [neuron.name for neuron in neurons]
        await trio.to_thread.run_sync(_write_files, config, models, list(zip(names, endpoints, strict=True)), port)
        gateway = serve.Gateway(settings.load(config, {}).settings)
        log.configure(gateway.settings.log)
        async with trio.open_nursery() as serving:
            addresses: serve.Addresses = await serving.start(partial(serve.serve, gateway, stop=stop.wait))
            _welcome(addresses, models)
            await stop.wait()
            click.echo("\nstopping; what runs may finish (Ctrl-C again: at once)")
        nursery.cancel_scope.cancel()  # the gateway has drained: the neurons may go


async def _set_on_signal(stop: trio.Event, *, task_status: trio.TaskStatus[None]) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for _ in signals:
            if stop.is_set():
                raise SystemExit(serve.SECOND_SIGNAL_EXIT_CODE)
            stop.set()


async def _serve_neuron(neuron: SimNeuron, *, task_status: trio.TaskStatus[str]) -> None:
    await neuron.serve(task_status=task_status)


def _welcome(addresses: serve.Addresses, models: Path) -> None:
    click.echo(
        WELCOME.format(
            api=addresses.url,
            metrics=f"http://{addresses.metrics}/metrics",
            folder=models.parent,
            models=models,
            python=sys.executable,
            cortex=Path(sys.executable).with_name("cortex"),
        )
    )


def _write_files(config: Path, models: Path, neurons: list[tuple[str, str]], port: int) -> None:
    lines = [
        "# Written by `cortex demo`; cortex.example.toml explains every key.",
        'models_config = "models.toml"',
        "",
        "[gateway]",
        f'listen = "127.0.0.1:{port}"',
        f'metrics_listen = "127.0.0.1:{port + 1 if port else 0}"',
        "drain_seconds = 10",
        "",
        "[log]",
        'level = "warning"   # "info" shows every request',
    ]
    for name, endpoint in neurons:
        lines += ["", "[[neurons]]", f'name = "{name}"', f'endpoint = "{endpoint}"']
    config.write_text("\n".join(lines) + "\n")
    models.write_text(MODELS_TOML)
