"""`cortex serve`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from catalogue.toml.faults import FaultyFile
from gateway.access.keys.secret import is_secret
from gateway.aliases.cross_checks import cross_check
from gateway.aliases.files.catalogue_files import state_directory
from gateway.cli.options import config_option, exit_with_faults, load_settings_to_serve, print_faults
from gateway.cli.terminal import print_error
from gateway.server.listen import CannotListen
from gateway.server.restart.service_manager import ServiceManager
from gateway.server.restart.socket_activation import inherited_sockets
from gateway.server.restart.takeover import connect_to_predecessor
from gateway.server.restart.takeover_messages import TakeoverFailed
from gateway.telemetry import log

__all__ = ["serve"]


@click.command()
@config_option
@click.option(
    "--takeover",
    is_flag=True,
    help="Take the sockets of the running gateway with the same state directory, which then drains and ends. It goes on"
    " if this one cannot start. Without a running gateway: start as usual.",
)
def serve(config: Path | None, *, takeover: bool) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then drain it.

    SIGHUP reloads models.toml and the file of neurons_config; SIGUSR2 starts a new process that takes over. Exit code 0
    after a drain, 1 if the configuration is faulty or an address is in use, 130 if a second signal cut the drain short.
    """
    from gateway.server import main as server  # noqa: PLC0415 - Quart and Hypercorn take 300 ms to import
    from gateway.server.gateway import Gateway  # noqa: PLC0415 - as above
    from gateway.server.serve import Start  # noqa: PLC0415 - as above

    loaded = load_settings_to_serve(config)
    log.configure(loaded.settings.log)
    print_faults(loaded.warnings, "warning")
    try:
        # Before the gateway reads, or moves, any state file.
        predecessor = connect_to_predecessor(state_directory(loaded.settings)) if takeover else None
        inherited = inherited_sockets(os.environ, loaded.settings.gateway)
    except (TakeoverFailed, CannotListen) as error:
        print_error(f"cortex: {error}")
        sys.exit(1)
    try:
        gateway = Gateway(loaded.settings, first_secret=_first_secret())
    except FaultyFile as error:
        exit_with_faults(error)
    print_faults(
        (
            *gateway.neuron_store.warnings,
            *(() if gateway.certificates is None else gateway.certificates.warnings()),
            *cross_check(loaded.settings, gateway.catalogue_store.current, gateway.neuron_store.neurons),
        ),
        "warning",
    )
    manager = ServiceManager.from_environment(os.environ)
    sys.exit(server.run(gateway, Start(inherited, predecessor, manager, replaceable=True)))


def _first_secret() -> str | None:
    """`CORTEX_BOOTSTRAP_KEY`, the secret of the first key. Exits with 1 if it has another form than a key."""
    secret = os.environ.get("CORTEX_BOOTSTRAP_KEY")
    if secret and not is_secret(secret):
        print_error(
            "error: CORTEX_BOOTSTRAP_KEY must be ctx_ID_SECRET, ID 1 to 32 and SECRET 32 to 128 letters and digits"
        )
        sys.exit(1)
    return secret or None
