"""Options that several commands have, and the settings they lead to."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import click

from catalogue.toml.faults import Fault, FaultyFile
from gateway.cli.terminal import print_error
from gateway.config.load import LoadedSettings, load

__all__ = [
    "admin_option",
    "ca_option",
    "config_option",
    "exit_with_faults",
    "find_config",
    "json_option",
    "load_settings",
    "load_settings_to_serve",
    "print_faults",
    "token_option",
    "url_option",
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
    "--key",
    "--token",
    "token",
    envvar=["CORTEX_KEY", "CORTEX_ADMIN__TOKEN"],
    show_envvar=True,
    help="A key of the gateway. Without it: [admin] token of cortex.toml, which is deprecated.",
)

url_option = click.option(
    "--url",
    envvar="CORTEX_URL",
    show_envvar=True,
    metavar="URL|NAME",
    help="The admin port of a gateway on another host, or its name in ~/.config/cortex/config.toml; no file is read or"
    " written here. Without it: the gateway and the files of cortex.toml.",
)

ca_option = click.option(
    "--ca",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CORTEX_CA",
    show_envvar=True,
    help="Certificates to trust for https, in PEM form. Without it: those of the profile, or the gateway's own"
    " certificate in cortex.toml, else the system's.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs.")


def find_config(config: Path | None) -> Path | None:
    """The cortex.toml: that of the command line, or else the first of the usual places; None if there is none."""
    return config or next((path for path in DEFAULT_CONFIGS if path.exists()), None)


def load_settings(config: Path | None) -> LoadedSettings:
    """The settings. If they are faulty, prints every fault on stderr and exits with 1."""
    try:
        return load(find_config(config), os.environ)
    except FaultyFile as error:
        exit_with_faults(error)


def load_settings_to_serve(config: Path | None) -> LoadedSettings:
    """The settings, with a warning if there is no cortex.toml. Exits with 1 if there is no neuron either.

    Without a file the defaults apply, which is a mistake more often than not: the wrong directory.
    """
    loaded = load_settings(config)
    if find_config(config) is None:
        places = " and ".join(map(str, DEFAULT_CONFIGS))
        if not loaded.settings.neurons and loaded.settings.neurons_config is None:
            click.echo(f"error: there is no cortex.toml (looked for {places}) and no neuron", err=True)
            click.echo("`cortex init` writes one, `cortex demo` runs a gateway with simulated neurons", err=True)
            sys.exit(1)
        print_error(f"warning: there is no cortex.toml (looked for {places}): the defaults apply")
    return loaded


def exit_with_faults(error: FaultyFile) -> NoReturn:
    """Print every fault on stderr and exit with 1."""
    print_faults(error.faults, "error")
    sys.exit(1)


def print_faults(faults: Iterable[Fault], kind: str) -> None:
    """Print each fault on a line of its own on stderr. `kind` is `error` or `warning`."""
    for fault in faults:
        print_error(f"{kind}: {fault}")
