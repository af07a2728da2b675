"""`cortex serve`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from catalogue.toml.faults import FaultyFile
from gateway.aliases.cross_checks import cross_check
from gateway.cli.options import config_option, exit_with_faults, load_settings_to_serve, print_faults
from gateway.telemetry import log

__all__ = ["serve"]


@click.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then drain it.

    SIGHUP reloads models.toml and the file of neurons_config. Exit code 0 after a drain, 1 if the configuration is
    faulty or an address is in use, 130 if a second signal cut the drain short.
    """
    from gateway.server import main as server  # noqa: PLC0415 - Quart and Hypercorn take 300 ms to import
    from gateway.server.gateway import Gateway  # noqa: PLC0415 - as above

    loaded = load_settings_to_serve(config)
    log.configure(loaded.settings.log)
    print_faults(loaded.warnings, "warning")
    try:
        gateway = Gateway(loaded.settings)
    except FaultyFile as error:
        exit_with_faults(error)
    print_faults(
        (
            *gateway.neuron_store.warnings,
            *cross_check(loaded.settings, gateway.catalogue_store.current, gateway.neuron_store.neurons),
        ),
        "warning",
    )
    sys.exit(server.run(gateway))
