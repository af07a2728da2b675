"""`cortex schema`: prints the JSON Schema of `cortex.toml` or `models.toml`."""

from __future__ import annotations

import click

from catalogue.load import models_schema
from gateway.cli.terminal import print_json
from gateway.config.load import settings_schema

__all__ = ["schema"]


@click.command()
@click.argument("file", type=click.Choice(["config", "models"]))
def schema(file: str) -> None:
    """Print the JSON Schema of a configuration file.

    `config` is that of cortex.toml, `models` that of models.toml.
    An editor with Taplo (Even Better TOML) uses it if the file begins with `#:schema PATH`.
    """
    print_json(settings_schema() if file == "config" else models_schema())
