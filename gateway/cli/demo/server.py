"""Runs the demo's gateway and three simulated neurons in one nursery, and prints commands to try on them."""

from __future__ import annotations

import shlex
import signal
import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import click
import trio

from gateway.cli.demo.files import DRAIN_S, write_files
from gateway.cli.demo.operator_key import new_operator_secret
from gateway.config import load
from gateway.server.gateway import Gateway
from gateway.server.listen import Addresses
from gateway.server.main import SECOND_SIGNAL_EXIT_CODE
from gateway.server.serve import serve
from gateway.telemetry import log
from neuron.simulated.fleet import demo_fleet

__all__ = ["run"]

WELCOME = """
cortex demo: {api}   (metrics: {metrics})
three simulated neurons: beast 2x24 GB, benjy 16 GB, quadbrat 8 GB
files: {folder}

  1  list the models and aliases
     curl -s {api}/v1/models | {python} -m json.tool --no-ensure-ascii | grep '"id"'

  2  send a chat request to an alias, and see the answer stream
     curl -sN {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/small","stream":true,"messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  3  point helexa/small at another model by editing one line; running requests are not disturbed
     sed -i 's#^"helexa/small" = .*#"helexa/small" = "Qwen/Qwen3.6-27B"#' {models}

  4  ten seconds later, once that model is loaded and has answered a probe: send the request again; x-cortex-model names the model
     curl -si {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/small","messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  5  show the whole fleet
     CORTEX_KEY={key} {cortex} status -e {api} --admin {admin}

  6  unload a model that can sleep: its engine keeps running, without its GPU memory
     {cortex} unload Qwen/Qwen3-8B --url {admin} --key {key}

  7  a request wakes it, in a ninth of the time of a load
     curl -si {api}/v1/chat/completions -H 'content-type: application/json' -d '{{"model":"helexa/balanced","messages":[{{"role":"user","content":"What is the capital of Georgia?"}}]}}'

  8  see the same in a browser: {admin}/ (key: {key})

Ctrl-C ends it.
"""  # noqa: E501 - each command must be one line to be copied


async def run(home: Path, speed: float, ports: tuple[int, int]) -> int:
    """Write the files, start everything, and drain after the first signal; returns the exit code.

    Raises:
        CannotListen: A port is in use; in an exception group.
    """
    stop = _StopSignals()
    async with trio.open_nursery() as nursery:
        await nursery.start(stop.watch, nursery.cancel_scope)
        endpoints = {neuron.name: await nursery.start(neuron.serve) for neuron in demo_fleet(speed)}
        config = await trio.to_thread.run_sync(write_files, home, endpoints, ports)
        settings = load.load(config, {}).settings
        key = await trio.to_thread.run_sync(new_operator_secret, settings)
        gateway = Gateway(settings)
        log.configure(gateway.settings.log)
        async with trio.open_nursery() as serving:
            addresses: Addresses = await serving.start(partial(serve, gateway, stop=stop.first.wait))
            click.echo(_welcome(addresses, home / "models.toml", key))
            await stop.first.wait()
            click.echo(f"\nstopping: running requests have {DRAIN_S} s to finish (Ctrl-C again stops at once)")
        nursery.cancel_scope.cancel()  # the neurons, once the gateway has drained
    return stop.exit_code


@dataclass(slots=True)
class _StopSignals:
    """The first signal sets `first`, the second cancels everything."""

    first: trio.Event = field(default_factory=trio.Event)
    exit_code: int = 0

    async def watch(
        self, everything: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for _ in signals:
                if self.first.is_set():
                    self.exit_code = SECOND_SIGNAL_EXIT_CODE
                    everything.cancel()
                self.first.set()


def _welcome(addresses: Addresses, models: Path, key: str) -> str:
    return WELCOME.format(
        api=addresses.url,
        admin=f"http://{addresses.metrics}",
        metrics=f"http://{addresses.metrics}/metrics",
        folder=models.parent,
        models=shlex.quote(str(models)),
        python=shlex.quote(sys.executable),
        cortex=shlex.quote(str(Path(sys.executable).with_name("cortex"))),
        key=key,
    )
