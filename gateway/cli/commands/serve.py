"""`cortex serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from catalogue.toml.faults import FaultyFile
from gateway.access.keys.secret import is_secret
from gateway.aliases.cross_checks import cross_check
from gateway.cli.options import config_option, exit_with_faults, load_settings_to_serve, print_faults
from gateway.cli.terminal import print_error
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
        gateway = Gateway(loaded.settings, first_secret=_first_secret())
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


def _first_secret() -> str | None:
    """`CORTEX_BOOTSTRAP_KEY`, the secret of the first key. Exits with 1 if it has another form than a key."""
    secret = os.environ.get("CORTEX_BOOTSTRAP_KEY")
    if secret and not is_secret(secret):
        print_error(
            "error: CORTEX_BOOTSTRAP_KEY must be ctx_ID_SECRET, ID 1 to 32 and SECRET 32 to 128 letters and digits"
        )
        sys.exit(1)
    return secret or None
