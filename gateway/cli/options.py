"""What every `cortex` command shares: where its settings come from, and how a refusal is told."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

import click

from catalogue.toml.faults import Fault, FaultyFile
from gateway.config.load import LoadedSettings, load

__all__ = ["config_option", "load_settings", "refuse", "tell", "token_option"]

USUAL_CONFIGS = (Path("cortex.toml"), Path("/etc/cortex/cortex.toml"))

config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CORTEX_CONFIG",
    help="The cortex.toml. Without it: ./cortex.toml, then /etc/cortex/cortex.toml, then defaults and environment.",
)

token_option = click.option(
    "--token",
    envvar="CORTEX_ADMIN__TOKEN",
    show_envvar=True,
    required=True,
    help="The admin token, [admin] token in cortex.toml.",
)


def load_settings(config: Path | None) -> LoadedSettings:
    """The settings, or every fault of them on stderr and exit code 1."""
    chosen = config or next((path for path in USUAL_CONFIGS if path.exists()), None)
    try:
        return load(chosen, os.environ)
    except FaultyFile as error:
        refuse(error)


def refuse(error: FaultyFile) -> NoReturn:
    """Every fault on stderr; exit code 1."""
    tell(error.faults, "error")
    sys.exit(1)


def tell(faults: Iterable[Fault], kind: str) -> None:
    """One line each, on stderr."""
    for fault in faults:
        click.echo(f"{kind}: {fault}", err=True)
