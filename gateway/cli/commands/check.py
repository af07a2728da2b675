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
from gateway.cli.terminal import counted
from gateway.config.settings import Settings, TlsSettings
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
    warnings: list[Fault] = []
    faults = [
        *_faults(catalogue_store.load_initial),
        *_faults(neuron_store.load_initial),
        *_faults(lambda: warnings.extend(_store_warnings(settings))),
        *_faults(lambda: warnings.extend(_certificate_warnings(settings.tls))),
    ]
    if faults:
        exit_with_faults(FaultyFile(tuple(faults)))
    catalogue, neurons = catalogue_store.current, neuron_store.neurons
    found = (*catalogue.warnings, *neuron_store.warnings, *warnings, *cross_check(settings, catalogue, neurons))
    print_faults(found, "warning")
    for path in (find_config(config), neuron_store.path, None if catalogue.digest is None else catalogue.path):
        if path is not None:
            click.echo(f"read {path}")
    models, aliases = counted(len(catalogue.models), "model"), counted(len(catalogue.aliases), "alias", "aliases")
    click.echo(f"ok: {counted(len(neurons), 'neuron')}, {models}, {aliases}")


def _store_warnings(settings: Settings) -> tuple[Fault, ...]:
    """Raises FaultyFile where a gateway would not start: in keys mode without its store."""
    reason = open_database(settings).why_unusable()
    if reason is None:
        return ()
    needs_keys = settings.access.mode == "keys"
    consequence = "the gateway does not start" if needs_keys else "usage is not recorded"
    hint = f"{consequence}: name a store that the gateway's user can write, or another [state] dir"
    fault = Fault("cortex.toml", None, "store.url", reason, hint)
    if needs_keys:
        raise FaultyFile((fault,))
    return (fault,)


def _certificate_warnings(tls: TlsSettings) -> tuple[Fault, ...]:
    certificates = open_certificates(tls)
    return () if certificates is None else certificates.warnings()


def _faults(read: Callable[[], object]) -> tuple[Fault, ...]:
    try:
        read()
    except FaultyFile as error:
        return error.faults
    return ()
