"""Options that several commands have, and the settings they lead to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import click

from catalogue.toml.faults import Fault, FaultyFile
from gateway.config.load import LoadedSettings, load

__all__ = [
    "admin_option",
    "config_option",
    "exit_with_faults",
    "json_option",
    "load_settings",
    "print_faults",
    "token_option",
]

DEFAULT_CONFIGS = (Path("cortex.toml"), Path("/etc/cortex/cortex.toml"))

config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CORTEX_CONFIG",
    help="The cortex.toml. Without it: ./cortex.toml, then /etc/cortex/cortex.toml, then defaults and environment.",
)

admin_option = click.option(
    "--admin",
    metavar="URL",
    help="The gateway's metrics port, which serves the admin API. Without it: metrics_listen of cortex.toml.",
)

token_option = click.option(
    "--token",
    envvar=["CORTEX_KEY", "CORTEX_ADMIN__TOKEN"],
    show_envvar=True,
    help="A key of the gateway, or its admin token. Without it: [admin] token of cortex.toml.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")


def load_settings(config: Path | None) -> LoadedSettings:
    """The settings. If they are faulty, prints every fault on stderr and exits with 1."""
    path = config or next((path for path in DEFAULT_CONFIGS if path.exists()), None)
    try:
        return load(path, os.environ)
    except FaultyFile as error:
        exit_with_faults(error)


def exit_with_faults(error: FaultyFile) -> NoReturn:
    """Print every fault on stderr and exit with 1."""
    print_faults(error.faults, "error")
    sys.exit(1)


def print_faults(faults: Iterable[Fault], kind: str) -> None:
    """Print each fault on a line of its own on stderr. `kind` is `error` or `warning`."""
    for fault in faults:
        click.echo(f"{kind}: {fault}", err=True)
