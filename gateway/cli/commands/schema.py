"""`cortex schema`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from catalogue.load import models_schema
from gateway.cli.terminal import print_json
from gateway.config.load import settings_schema
from gateway.config.neurons_file import neurons_schema
from neuron.agent.config.load import neuron_schema

__all__ = ["schema"]

_SCHEMAS: dict[str, Callable[[], dict[str, Any]]] = {
    "config": settings_schema,
    "models": models_schema,
    "neurons": neurons_schema,
    "neuron": neuron_schema,
}


@click.command()
@click.argument("file", type=click.Choice(list(_SCHEMAS)))
def schema(file: str) -> None:
    """Print the JSON Schema of a configuration file.

    `config` is that of cortex.toml, `models` that of models.toml, `neurons` that of the file that `neurons_config`
    names, `neuron` that of neuron.toml.
    An editor with Taplo (Even Better TOML) uses it if the file begins with `#:schema PATH`.
    """
    print_json(_SCHEMAS[file]())
