"""`cortex check`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from catalogue.toml.faults import FaultyFile
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.cross_checks import cross_check
from gateway.cli.options import config_option, exit_with_faults, find_config, load_settings_to_serve, print_faults
from gateway.telemetry import log

__all__ = ["check"]


@click.command()
@config_option
def check(config: Path | None) -> None:
    """Check cortex.toml and models.toml, and list every fault.

    Reads them exactly as `serve` does. Exit code 1 if there is any fault.
    """
    loaded = load_settings_to_serve(config)
    settings = loaded.settings
    # The catalogue store logs the warnings that this command prints.
    log.configure(dataclasses.replace(settings.log, level="critical"))
    print_faults(loaded.warnings, "warning")
    try:
        catalogue = CatalogueStore(settings.models_config).load_initial()
    except FaultyFile as error:
        exit_with_faults(error)
    print_faults((*catalogue.warnings, *cross_check(settings, catalogue)), "warning")
    for path in (find_config(config), None if catalogue.digest is None else catalogue.path):
        if path is not None:
            click.echo(f"read {path}")
    neurons = len(settings.neurons)
    click.echo(f"ok: {neurons} neurons, {len(catalogue.models)} models, {len(catalogue.aliases)} aliases")
