"""`python -m neuron.simulated`: one simulated neuron on a real port, until SIGINT or SIGTERM. Prints its URL."""

from __future__ import annotations

import signal
from dataclasses import replace
from functools import partial

import click
import trio

from neuron.simulated import fleet
from neuron.simulated.hardware import PRESETS, SimModel
from neuron.simulated.neuron import SimNeuron


def _listed(value: str) -> list[str]:
    return [part for part in value.split(",") if part]


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=0, help="0 asks the kernel for a free one.", show_default=True)
@click.option("--name", default="sim", show_default=True)
@click.option("--devices", default="24576", help="VRAM in MB of each device, by comma.", show_default=True)
@click.option("--models", default=",".join(PRESETS), help="Model ids on disk, by comma.")
@click.option("--loaded", default="Qwen/Qwen3-1.7B", help="Model ids loaded at start, by comma.", show_default=True)
@click.option("--speed", default=1.0, help="10 is ten times faster.", show_default=True)
@click.option("--max-in-flight", type=int, help="Requests for one model at once.  [default: each model's own]")
def main(
    *, host: str, port: int, name: str, devices: str, models: str, loaded: str, speed: float, max_in_flight: int | None
) -> None:
    """Serve one simulated neuron."""
    unknown = [model for model in _listed(models) + _listed(loaded) if model not in PRESETS]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not a simulated model; known: {', '.join(PRESETS)}")
    simulated = fleet.neuron(
        name,
        [int(size) for size in _listed(devices)],
        _listed(loaded),
        models=[_preset(model, max_in_flight) for model in _listed(models)],
        speed=speed,
    )
    trio.run(_run, simulated, host, port)


def _preset(model: str, max_in_flight: int | None) -> SimModel:
    preset = PRESETS[model]
    return preset if max_in_flight is None else replace(preset, max_in_flight=max_in_flight)


async def _run(simulated: SimNeuron, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            click.echo(await nursery.start(partial(simulated.serve, host=host, port=port)))
            await anext(aiter(signals))
            nursery.cancel_scope.cancel()


if __name__ == "__main__":
    main()
