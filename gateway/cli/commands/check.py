"""`cortex check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import click

from catalogue.toml.faults import Fault, FaultyFile
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.cross_checks import cross_check
from gateway.cli.options import config_option, exit_with_faults, find_config, load_settings_to_serve, print_faults
from gateway.config.settings import TlsSettings
from gateway.http.server_tls.certificate_store import open_certificates
from gateway.server.access.parts import open_database
from gateway.server.neurons.neuron_store import NeuronStore
from gateway.telemetry import log

__all__ = ["check"]


@click.command()
@config_option
def check(config: Path | None) -> None:
    """Check cortex.toml and models.toml, and list every fault.

    Reads them, and the file of neurons_config, exactly as `serve` does. Exit code 1 if there is any fault.
    """
    loaded = load_settings_to_serve(config)
    settings = loaded.settings
    # The catalogue store logs the warnings that this command prints.
    log.configure(dataclasses.replace(settings.log, level="critical"))
    print_faults(loaded.warnings, "warning")
    catalogue_store, neuron_store = CatalogueStore(settings.models_config), NeuronStore(settings)
    certificates: list[Fault] = []
    faults = [
        *_faults(catalogue_store.load_initial),
        *_faults(neuron_store.load_initial),
        *_faults(lambda: open_database(settings)),
        *_faults(lambda: certificates.extend(_certificate_warnings(settings.tls))),
    ]
    if faults:
        exit_with_faults(FaultyFile(tuple(faults)))
    catalogue, neurons = catalogue_store.current, neuron_store.neurons
    found = (*catalogue.warnings, *neuron_store.warnings, *certificates, *cross_check(settings, catalogue, neurons))
    print_faults(found, "warning")
    for path in (find_config(config), neuron_store.path, None if catalogue.digest is None else catalogue.path):
        if path is not None:
            click.echo(f"read {path}")
    click.echo(f"ok: {len(neurons)} neurons, {len(catalogue.models)} models, {len(catalogue.aliases)} aliases")


def _certificate_warnings(tls: TlsSettings) -> tuple[Fault, ...]:
    certificates = open_certificates(tls)
    return () if certificates is None else certificates.warnings()


def _faults(read: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        read()
    except FaultyFile as error:
        return error.faults
    return ()
