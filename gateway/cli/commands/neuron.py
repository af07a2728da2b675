"""`cortex neuron`: the commands of the daemon on a GPU host."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from catalogue.toml.faults import FaultyFile
from gateway.cli.options import exit_with_faults, print_faults
from gateway.config.settings import LogSettings
from gateway.telemetry import log
from neuron.agent.config.load import LoadedNeuronFile, load_neuron_file

__all__ = ["neuron"]

DEFAULT_NEURON_CONFIGS = (Path("neuron.toml"), Path("/etc/cortex/neuron.toml"))

_config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CORTEX_NEURON_CONFIG",
    help="The neuron.toml. Without it: ./neuron.toml, then /etc/cortex/neuron.toml.",
)


@click.group()
def neuron() -> None:
    """Run inference engines on this host for gateways to use."""


@neuron.command()
@_config_option
def serve(config: Path | None) -> None:
    """Serve the models of neuron.toml until SIGTERM or Ctrl-C. SIGHUP reads the file again."""
    from neuron.agent.main import run  # noqa: PLC0415 - other commands need not wait for Quart

    path = _path(config)
    print_faults(_load(path).warnings, "warning")
    log.configure(LogSettings())
    sys.exit(run(path, path.read_bytes()))


@neuron.command()
@_config_option
def check(config: Path | None) -> None:
    """Check neuron.toml, and list every fault.

    Reads it exactly as `serve` does. Exit code 1 if there is any fault.
    """
    loaded = _load(_path(config))
    print_faults(loaded.warnings, "warning")
    click.echo(f"ok: {len(loaded.settings.engines)} engines, {len(loaded.settings.models)} models")


def _path(config: Path | None) -> Path:
    found = (path for path in DEFAULT_NEURON_CONFIGS if path.exists())
    return config or next(found, DEFAULT_NEURON_CONFIGS[0])


def _load(path: Path) -> LoadedNeuronFile:
    try:
        return load_neuron_file(path)
    except FaultyFile as error:
        exit_with_faults(error)
