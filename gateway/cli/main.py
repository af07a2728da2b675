"""`cortex serve | demo | status | explain | check | drain | undrain`, and others. No logic: options in, exit codes out.

`cortex alias` is in `cli_alias.py`, `plan` and `audit` in `cli_records.py`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from catalogue.toml.faults import FaultyFile
from gateway import __version__
from gateway.cli.commands.alias import alias
from gateway.cli.commands.plan_audit import audit, plan
from gateway.cli.commands.schema import schema
from gateway.cli.options import config_option, load_settings, refuse, tell, token_option
from gateway.telemetry import log

__all__ = ["main"]


class _Commands(click.Group):
    """Exit code 1 for a command line that is wrong, instead of Click's 2: that is an answer of several commands here.

    Whoever takes the 2 of `cortex plan` for "there are changes" should not be told so by a typing mistake.
    """

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        """As Click does."""
        with _refused():
            return super().make_context(*arguments, **more)

    def invoke(self, ctx: click.Context) -> Any:
        """As Click does: it reads the command lines of all commands below."""
        with _refused():
            return super().invoke(ctx)


@contextmanager
def _refused() -> Iterator[None]:
    try:
        yield
    except click.UsageError as error:
        error.exit_code = 1  # type: ignore[misc]  # where Click reads it
        raise


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="cortex")
def main() -> None:
    """One address in front of your GPU hosts: OpenAI-compatible, tier aliases, hot swaps."""


@main.command()
@config_option
def serve(config: Path | None) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then drain it. SIGHUP reloads models.toml."""
    from gateway.server import main as serving  # noqa: PLC0415 - `cortex --help` should not wait for Quart and Hypercorn
    from gateway.server.gateway import Gateway  # noqa: PLC0415 - as above

    loaded = load_settings(config)
    log.configure(loaded.settings.log)
    tell(loaded.warnings, "warning")
    try:
        gateway = Gateway(loaded.settings)
    except FaultyFile as error:
        refuse(error)
    sys.exit(serving.run(gateway))


@main.command()
@config_option
def check(config: Path | None) -> None:
    """Read cortex.toml and models.toml as `serve` would, and list every fault. Exit code 1 if there is any."""
    from gateway.aliases.catalogue_store import CatalogueStore  # noqa: PLC0415 - as above

    loaded = load_settings(config)
    # The catalogue store logs the catalogue's warnings too; here they are told once, as the command's answer.
    log.configure(dataclasses.replace(loaded.settings.log, level="critical"))
    tell(loaded.warnings, "warning")
    try:
        catalogue = CatalogueStore(loaded.settings.models_config).load_initial()
    except FaultyFile as error:
        refuse(error)
    tell(catalogue.warnings, "warning")
    neurons = len(loaded.settings.neurons)
    click.echo(f"ok: {neurons} neurons, {len(catalogue.models)} models, {len(catalogue.aliases)} aliases")


@main.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="a new folder under the temporary directory, kept",
    help="Where to write cortex.toml and models.toml.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="Of the neurons, as a multiple of the real models' speed: 10 answers in a tenth of the time.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65534),
    default=31313,
    show_default=True,
    help="TCP port of the API on 127.0.0.1; metrics go one above. 0, or if either is taken: free ones.",
)
def demo(folder: Path | None, speed: float, port: int) -> None:
    """Run the gateway in front of three simulated neurons, and print commands to try."""
    from gateway.cli import demo as demonstration  # noqa: PLC0415 - as above

    sys.exit(demonstration.run(folder, speed=speed, port=port))


@main.command()
@click.option("-e", "--endpoint", default="http://localhost:31313", show_default=True, help="The gateway's API.")
@click.option(
    "--admin",
    default="http://localhost:31314",
    show_default=True,
    metavar="URL",
    help="The metrics port: asked for devices, leases, requests and loads under way when there is a token.",
)
@click.option(
    "--token",
    envvar="CORTEX_ADMIN__TOKEN",
    show_envvar=True,
    show_default="none: the public port only",
    help="The admin token, [admin] token in cortex.toml.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object for programs, instead of tables.")
@click.option("--watch", is_flag=True, help="Redraw every 2 seconds until Ctrl-C.")
def status(endpoint: str, admin: str, token: str | None, *, as_json: bool, watch: bool) -> None:
    """Show health, nodes, models and aliases. Exit code 2 if the gateway does not answer."""
    from gateway.cli.views import status_view as window  # noqa: PLC0415 - as above

    source = window.Source(endpoint.rstrip("/"), admin.rstrip("/"), token)
    sys.exit(window.run(source, as_json=as_json, watch=watch))


@main.command()
@click.argument("request_id")
@click.option("--admin", default="http://localhost:31314", show_default=True, help="The metrics port.")
@token_option
@click.option("--json", "as_json", is_flag=True, help="The admin API's answer for programs, instead of a story.")
def explain(request_id: str, admin: str, token: str, *, as_json: bool) -> None:
    """Tell what became of a request and why: where it went, what it waited for, who was asked, how it ended.

    REQUEST_ID is the `x-request-id` of its answer. If a client has used one id for several requests, all are told.
    Exit code 1 if none is remembered, 2 if the gateway does not answer.
    """
    from gateway.cli.views import explain_view  # noqa: PLC0415 - as above

    sys.exit(explain_view.explain(admin.rstrip("/"), token, request_id, as_json=as_json))


@main.command()
@click.argument("neuron")
@click.option("--move", is_flag=True, help="First load what only this neuron holds elsewhere; until then it serves on.")
@click.option("--admin", default="http://localhost:31314", show_default=True, help="The metrics port.")
@token_option
def drain(neuron: str, admin: str, token: str, *, move: bool) -> None:
    """Take a neuron out: new requests go elsewhere, running ones finish. Returns when the last one has.

    It stays out, through its own restart too, until `cortex undrain`, or until the gateway itself is started anew. Exit
    code 1 if a model cannot be moved: then the neuron stays as it was.
    """
    from gateway.cli.views import status_view as window  # noqa: PLC0415 - as above

    sys.exit(window.drain(admin.rstrip("/"), token, neuron, move=move))


@main.command()
@click.argument("neuron")
@click.option("--admin", default="http://localhost:31314", show_default=True, help="The metrics port.")
@token_option
def undrain(neuron: str, admin: str, token: str) -> None:
    """Let requests on to a neuron again."""
    from gateway.cli.views import status_view as window  # noqa: PLC0415 - as above

    sys.exit(window.undrain(admin.rstrip("/"), token, neuron))


main.add_command(alias)
main.add_command(audit)
main.add_command(plan)
main.add_command(schema)


if __name__ == "__main__":
    main()
