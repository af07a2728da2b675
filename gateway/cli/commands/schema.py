"""`cortex schema`: prints the JSON Schema of `cortex.toml` or `models.toml`."""

from __future__ import annotations

import json

import click

from catalogue.load import models_schema
from gateway.config.load import settings_schema

__all__ = ["schema"]


@click.command()
@click.argument("file", type=click.Choice(["config", "models"]))
def schema(file: str) -> None:
    """Print the JSON Schema of cortex.toml (`config`) or models.toml (`models`), for editors.

    An editor with Taplo (Even Better TOML) uses it if the file begins with `#:schema PATH`.
    """
    found = settings_schema() if file == "config" else models_schema()
    click.echo(json.dumps(found, indent=2, ensure_ascii=False))
