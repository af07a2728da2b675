"""`cortex check`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from catalogue.toml.faults import FaultyFile
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.cli.options import config_option, exit_with_faults, load_settings, print_faults
from gateway.telemetry import log

__all__ = ["check"]


@click.command()
@config_option
def check(config: Path | None) -> None:
    """Check cortex.toml and models.toml, and list every fault.

    Reads them exactly as `serve` does. Exit code 1 if there is any fault.
    """
    loaded = load_settings(config)
    # The catalogue store logs the warnings that this command prints.
    log.configure(dataclasses.replace(loaded.settings.log, level="critical"))
    print_faults(loaded.warnings, "warning")
    try:
        catalogue = CatalogueStore(loaded.settings.models_config).load_initial()
    except FaultyFile as error:
        exit_with_faults(error)
    print_faults(catalogue.warnings, "warning")
    neurons = len(loaded.settings.neurons)
    click.echo(f"ok: {neurons} neurons, {len(catalogue.models)} models, {len(catalogue.aliases)} aliases")
