"""`cortex init`: writes `cortex.toml` and `models.toml` for the engines that it finds."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

import click

from catalogue.load import parse
from catalogue.toml.faults import FaultyFile
from gateway.cli.engine_search import FoundServer, InvalidHost, endpoints_on, search
from gateway.cli.options import exit_with_faults
from gateway.cli.terminal import counted, print_error
from gateway.config.load import load

__all__ = ["init"]

FAILED = 1  # exit code


@click.command()
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Where to look for neurons and engines; may be given several times. Without it: asks, or else this host.",
)
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    default=".",
    show_default=True,
    help="Where to write both files.",
)
@click.option("--overwrite", is_flag=True, help="Replace files that exist.")
def init(hosts: tuple[str, ...], folder: Path, *, overwrite: bool) -> None:
    """Write both files for the engines found on the given hosts.

    Asks each host at the usual ports of neurons, vLLM, llama.cpp, SGLang, Ollama and LM Studio, or at the port that is
    given. Exit code 1 if it finds none, or if a file exists.
    """
    paths = folder / "cortex.toml", folder / "models.toml"
    there = [str(path) for path in paths if path.exists()]
    if there and not overwrite:
        _fail(f"{' and '.join(there)} exist already; --overwrite replaces them, --dir names another folder")
    try:
        endpoints = [endpoint for host in hosts or _ask_for_hosts() for endpoint in endpoints_on(host)]
    except InvalidHost as error:
        _fail(str(error))
    click.echo(f"looking at {counted(len(endpoints), 'address', 'addresses')}")
    found = search(dict.fromkeys(endpoints))
    if not found:
        _fail(f"no neuron and no engine answers at {', '.join(endpoints)}; nothing was written")
    for server in found:
        click.echo(f"{server.endpoint}: {server.engine or server.kind}, {counted(len(server.models), 'model')}")
    _write(paths, found)


def _ask_for_hosts() -> Sequence[str]:
    """The hosts that a person names; in a script this host."""
    if not sys.stdin.isatty():
        return ("localhost",)
    answer: str = click.prompt("Hosts with engines, separated by spaces", default="localhost")
    return answer.split()


def _write(paths: tuple[Path, Path], found: Sequence[FoundServer]) -> None:
    config, models = paths
    texts = _cortex_toml(found), _models_toml(found)
    try:
        config.parent.mkdir(parents=True, exist_ok=True)
        parse(texts[1].encode(), path=str(models), generation=0, loaded_at=0.0)
        models.write_text(texts[1], encoding="utf-8")
        # Only for its owner: `api_key` of an engine will be in it.
        with open(os.open(config, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:  # noqa: PTH123 - mode
            file.write(texts[0])
        load(config, {})
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    except FaultyFile as error:
        exit_with_faults(error)
    click.echo(f"wrote {config} and {models}")
    click.echo(f"next: cortex check -c {config}, then cortex serve -c {config}")
    click.echo(f"a key for yourself: cortex key create me --verbs infer,read,operate,keys -c {config}")


def _cortex_toml(found: Sequence[FoundServer]) -> str:
    lines = [
        "# Written by `cortex init`. cortex.example.toml explains every key.",
        'models_config = "models.toml"',
        "",
        "[gateway]",
        'listen = "127.0.0.1:31313"           # the API',
        'metrics_listen = "127.0.0.1:31314"   # metrics and the admin API',
    ]
    names: set[str] = set()
    for server in found:
        lines += ["", "[[neurons]]", f"name = {_quoted(_unique(server.name, names))}"]
        lines += [f"endpoint = {_quoted(server.endpoint)}"]
        if server.kind != "neuron":
            lines += [f"kind = {_quoted(server.kind)}"]
        if server.engine is not None:
            lines += [f"engine = {_quoted(server.engine)}"]
    return "\n".join(lines) + "\n"


def _unique(name: str, names: set[str]) -> str:
    number, unique = 1, name
    while unique in names:
        number += 1
        unique = f"{name}-{number}"
    names.add(unique)
    return unique


def _models_toml(found: Iterable[FoundServer]) -> str:
    """An alias for the first model, and a table for each model that cortex could load: those of neurons."""
    models = {model: harness for server in found for model, harness in server.models}
    lines = ["# Written by `cortex init`. models.example.toml explains every key. The gateway notices each change."]
    if models:
        alias = "default" if "default" not in models else "main"
        lines += ["[aliases]", f"{alias} = {_quoted(next(iter(models)))}"]
    else:
        lines += ["models = []   # no server lists a model yet"]
    for model, harness in models.items():
        if harness is not None:
            lines += ["", "[[models]]", f"id = {_quoted(model)}", f"harness = {_quoted(harness)}"]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """A basic string of TOML, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _fail(text: str) -> NoReturn:
    print_error(f"error: {text}")
    sys.exit(FAILED)
