"""`cortex neuron`: the commands of the daemon on a GPU host."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click

from catalogue.toml.addresses import Listen
from catalogue.toml.faults import FaultyFile
from gateway.cli.api_client import ApiError, segment
from gateway.cli.options import exit_with_faults, json_option, print_faults
from gateway.cli.terminal import console, counted, print_error, print_json
from gateway.cli.views import neuron_view
from gateway.config.settings import LogSettings
from gateway.telemetry import log
from neuron.agent import host_survey
from neuron.agent.config.load import LoadedNeuronFile, load_neuron_file
from neuron.agent.config.settings import ApiSettings
from neuron.agent.devices.devices import open_devices

__all__ = ["neuron"]

ALIAS = "chat"
DEFAULT_NEURON_CONFIGS = (Path("neuron.toml"), Path("/etc/cortex/neuron.toml"))

_config_option = click.option(
    "-c",
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="CORTEX_NEURON_CONFIG",
    help="The neuron.toml. Without it: ./neuron.toml, then /etc/cortex/neuron.toml.",
)


_url_option = click.option(
    "--url", envvar="CORTEX_NEURON_URL", help="The neuron's API.  [default: that of neuron.toml, else port 13131 here]"
)
_token_option = click.option(
    "--token", envvar="CORTEX_NEURON_TOKEN", show_envvar=True, help="Its token.  [default: that of neuron.toml]"
)


@click.group()
def neuron() -> None:
    """Run inference engines on this host for gateways to use."""


@neuron.command()
@_config_option
def serve(config: Path | None) -> None:
    """Serve the models of neuron.toml until SIGTERM or Ctrl-C. SIGHUP reads the file again."""
    from neuron.agent.main import run  # noqa: PLC0415 - other commands need not wait for Quart

    path = _path(config)
    print_faults(_load(path).warnings, "warning")
    log.configure(LogSettings())
    sys.exit(run(path, path.read_bytes()))


@neuron.command()
@_config_option
def check(config: Path | None) -> None:
    """Check neuron.toml, and list every fault.

    Reads it exactly as `serve` does. Exit code 1 if there is any fault.
    """
    loaded = _load(_path(config))
    print_faults(loaded.warnings, "warning")
    engines, models = loaded.settings.engines, loaded.settings.models
    click.echo(f"ok: {counted(len(engines), 'engine')}, {counted(len(models), 'model')}")


@neuron.command()
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path, dir_okay=False), default="neuron.toml", show_default=True
)
@click.option("--gateway", is_flag=True, help="Also write cortex.toml and models.toml beside it, for a gateway here.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
def init(folders: tuple[Path, ...], output: Path, *, gateway: bool, force: bool) -> None:
    """Look at this host, and write a neuron.toml that works.

    Finds GPUs, engines, and models in FOLDERS, ~/models, /srv/models, and the caches of Hugging Face and llama.cpp.
    """
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        print_error(f"error: no such folder: {', '.join(missing)}")
        sys.exit(1)
    found = host_survey.survey(os.environ, folders, open_devices())
    files = {output: host_survey.neuron_toml(found)}
    if gateway:
        files[output.with_name("cortex.toml")] = host_survey.cortex_toml()
        files[output.with_name("models.toml")] = host_survey.models_toml(found, ALIAS)
    existing = [str(path) for path in files if path.exists()]
    if existing and not force:
        verb, them = ("exists", "it") if len(existing) == 1 else ("exist", "them")
        print_error(f"error: {', '.join(existing)} {verb} already; --force replaces {them}")
        sys.exit(1)
    for path, text in files.items():
        path.write_text(text)
    click.echo(f"devices: {'; '.join(found.devices)}")
    click.echo(f"engines: {', '.join(f'{kind} ({program})' for kind, program in found.engines.items()) or 'none'}")
    click.echo(f"models: {', '.join(model.id for model in found.models) or 'none'}")
    for model_id in found.skipped:
        click.echo(f"no engine for: {model_id}")
    click.echo(f"wrote {', '.join(map(str, files))}")


@neuron.command()
@click.argument("model")
@click.option("-f", "--follow", is_flag=True, help="Go on as the engine prints, until Ctrl-C.")
@click.option("--bytes", "limit", type=click.IntRange(0), default=65536, show_default=True, help="How much at most.")
@_config_option
@_url_option
@_token_option
def logs(model: str, config: Path | None, url: str | None, token: str | None, *, follow: bool, limit: int) -> None:
    """Print what the engine of MODEL has printed. Exit code 2 if the neuron does not answer."""
    path = f"/engines/{segment(model)}/logs?bytes={limit}&follow={int(follow)}"
    address = _address(config, url, token)
    try:
        with neuron_view.stream(address, path) as pieces:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
                sys.stdout.buffer.flush()
    except ApiError as error:
        print_error(f"error: {error}")
        sys.exit(2 if error.status is None else 1)
    except KeyboardInterrupt:
        sys.exit(130)


@neuron.command()
@_config_option
@_url_option
@_token_option
@json_option
def status(config: Path | None, url: str | None, token: str | None, *, as_json: bool) -> None:
    """Show the devices and models of a neuron. Exit code 2 if it does not answer."""
    address = _address(config, url, token)
    try:
        state = neuron_view.read_state(address)
    except ApiError as error:
        print_error(f"error: {error}")
        sys.exit(2 if error.status is None else 1)
    if as_json:
        print_json(state)
    else:
        console().print(neuron_view.render(state))


def _address(config: Path | None, url: str | None, token: str | None) -> neuron_view.NeuronAddress:
    """As given, else as the configuration file has it, else the default."""
    path = _path(config)
    api = _load(path).settings.api if path.exists() else ApiSettings()
    loopback = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    listen = Listen(loopback.get(api.listen.host, api.listen.host), api.listen.port)
    local = f"{'https' if api.cert else 'http'}://{listen}"
    return neuron_view.NeuronAddress((url or local).rstrip("/"), token or api.token)


def _path(config: Path | None) -> Path:
    found = (path for path in DEFAULT_NEURON_CONFIGS if path.exists())
    return config or next(found, DEFAULT_NEURON_CONFIGS[0])


def _load(path: Path) -> LoadedNeuronFile:
    try:
        return load_neuron_file(path)
    except FaultyFile as error:
        exit_with_faults(error)
