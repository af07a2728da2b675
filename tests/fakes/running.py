"""A whole gateway on real sockets in front of simulated neurons, for one test."""

from __future__ import annotations

import dataclasses
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import trio
from fakes.fleets import assert_idle
from fakes.patience import PATIENT_DEADLINES, PATIENT_POLL, PATIENT_STREAMING, until

from gateway.config.settings import AdminSettings, GatewaySettings, Listen, NeuronSettings, Settings
from gateway.server.gateway import Gateway
from gateway.server.listen import Addresses
from gateway.server.serve import Start, serve
from neuron.simulated.faults import EndpointFails
from neuron.simulated.fleet import neuron
from neuron.simulated.neuron import SimNeuron

SMALL, MIDDLE, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B"

MODELS_TOML = f"""
[aliases]
"helexa/small" = "{SMALL}"
"helexa/large" = "{LARGE}"
"helexa/dead" = "nobody/has-it"

[[models]]
id = "{SMALL}"
harness = "llamacpp"
vram_mb = 4096

[[models]]
id = "{LARGE}"
harness = "llamacpp"
vram_mb = 20480
"""

BOTH_WAYS = pytest.mark.parametrize("pump", [True, False], ids=["pump", "tasks"], indirect=True)
"""For modules of tests/e2e whose streams must be the same through the pump and through a task each."""

PROBE = [{"role": "user", "content": "What is the capital of Georgia?"}]


@dataclass
class Running:
    """A running gateway."""

    gateway: Gateway
    addresses: Addresses
    neurons: list[SimNeuron]
    models_toml: Path
    stop: trio.Event = field(default_factory=trio.Event)

    @property
    def url(self) -> str:
        return self.addresses.url

    @property
    def metrics_url(self) -> str:
        return f"http://{self.addresses.metrics}/metrics"

    @property
    def port(self) -> int:
        return self.addresses.api.port

    def swap(self, alias: str, target: str) -> None:
        """Point an alias at another model as an editor does: a new file, renamed over the old one."""
        lines = [
            f'"{alias}" = "{target}"' if line.startswith(f'"{alias}"') else line
            for line in self.models_toml.read_text().splitlines()
        ]
        self.save("\n".join(lines) + "\n")

    def save(self, text: str) -> None:
        """Replace the catalogue's file."""
        new = self.models_toml.with_suffix(".new")
        new.write_text(text)
        new.rename(self.models_toml)

    async def pointing_at(self, alias: str, target: str) -> None:
        """Wait until the alias has this target: its swap may have to warm it."""
        await until(lambda: self.gateway.catalogue_store.current.aliases[alias].target == target)

    async def down(self) -> None:
        """Make every neuron fail its polls; return when the gateway marks all of them as down."""
        for each in self.neurons:
            each.faults.add(EndpointFails(path="/models"))
        await until(lambda: not any(node.healthy for node in self.gateway.fleet.nodes.values()))

    async def generation_above(self, generation: int) -> None:
        """Wait until a newer catalogue is in force."""
        await until(lambda: self.gateway.catalogue_store.current.generation > generation)


async def settled(gateway: Gateway) -> None:
    """Wait until nothing is left of any request: a client has its last byte shortly before the record is closed."""
    await until(lambda: not gateway.request_log.live and not gateway.upstream.in_use)
    assert_idle(gateway.fleet)


def one_neuron(speed: float = 100.0) -> list[SimNeuron]:
    """One host with both tiers loaded, a hundred times faster than real models."""
    return [neuron("beast", [24576, 24576], [SMALL, LARGE], speed=speed)]


@asynccontextmanager
async def running_gateway(
    folder: Path,
    neurons: list[SimNeuron] | None = None,
    *,
    models_toml: str = MODELS_TOML,
    backends: tuple[NeuronSettings, ...] = (),
    speaking: tuple[str, ...] = ("openai",),
    start: Start | None = None,
    neurons_file: bool = False,
    **sections: object,
):
    """Start everything, yield it, and cancel it at the end.

    `backends` already run, besides the simulated neurons, which have the dialects `speaking`. `sections` replace whole
    sections of the settings. `neurons_file`: the simulated neurons are in neurons.toml, not in the settings.
    """
    simulated = one_neuron() if neurons is None else neurons
    path = folder / "models.toml"
    path.write_text(models_toml)
    async with trio.open_nursery() as nursery:
        endpoints = [await nursery.start(partial(_serve_neuron, each)) for each in simulated]
        settings = Settings(
            gateway=GatewaySettings(listen=Listen("127.0.0.1", 0), metrics_listen=Listen("127.0.0.1", 0)),
            poll=PATIENT_POLL,
            deadlines=PATIENT_DEADLINES,
            streaming=PATIENT_STREAMING,
            admin=AdminSettings(token="secret"),
            neurons=(
                *(
                    NeuronSettings(each.name, url, dialects=speaking)
                    for each, url in zip(simulated, endpoints, strict=True)
                ),
                *backends,
            ),
            models_config=path,
        )
        if neurons_file:
            tables = (f'[[neurons]]\nname = "{each.name}"\nendpoint = "{each.endpoint}"\n' for each in settings.neurons)
            (folder / "neurons.toml").write_text("".join(tables))
            settings = dataclasses.replace(settings, neurons=(), neurons_config=folder / "neurons.toml")
        gateway = Gateway(dataclasses.replace(settings, **sections))
        stop = trio.Event()
        addresses = await nursery.start(partial(serve, gateway, stop=stop.wait, start=start))
        yield Running(gateway, addresses, simulated, path, stop)
        nursery.cancel_scope.cancel()


async def _serve_neuron(simulated: SimNeuron, *, task_status: trio.TaskStatus[str]) -> None:
    await simulated.serve(task_status=task_status)
