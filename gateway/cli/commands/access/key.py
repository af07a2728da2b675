"""`cortex key`: the keys of a gateway, in its store or over the network."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import click
import msgspec

from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.options import json_option
from gateway.cli.source.keys import KeyCommandError, KeySource, Unavailable, key_source
from gateway.cli.terminal import print_error, print_json
from gateway.cli.views import key_view

__all__ = ["key"]

REFUSED, UNAVAILABLE = 1, 2  # exit codes

_Result = TypeVar("_Result")


@click.group()
def key() -> None:
    """Create and change keys.

    They are in the store that cortex.toml names, [store] url, and in force within a second. With --url the command
    works through the admin API of that gateway and needs a key with the verb `keys`. NAME is a key's name or id.
    """


class _CountOrNone(click.ParamType[int | str]):
    """A whole number, or `none`."""

    name = "n|none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if value == "none":
            return "none"
        try:
            return int(value)
        except (TypeError, ValueError):
            self.fail(f"{value!r} is neither a whole number nor none", param, ctx)


def _setting_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `create` and `edit`."""
    options = (
        click.option("--may", multiple=True, metavar="GLOB", help="Models and aliases it may ask for: 'helexa/*'."),
        click.option("--verbs", metavar="VERB,…", help="Of infer, read, operate, keys."),
        click.option("--rpm", type=_CountOrNone(), help="Requests per minute."),
        click.option("--tpm", type=_CountOrNone(), help="Tokens per minute."),
        click.option("--concurrency", type=_CountOrNone(), help="Requests at a time."),
        click.option("--budget", "budgets", multiple=True, metavar="BUDGET", help="'usd 20/month', 'tokens 5M/day'."),
        click.option("--observe", metavar="LIMIT,…", help="Of rpm, tpm, concurrency, none: count, refuse nothing."),
        click.option(
            "--weight", type=int, help="Its share of the slots of a busy model, beside other keys. Default: 100."
        ),
        click.option(
            "--priority",
            type=click.Choice(["interactive", "batch"]),
            help="Whose requests get a slot first when requests have to wait. Default: interactive.",
        ),
        click.option("--expires", metavar="DURATION", help="90d, 24h; or never."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@key.command()
@click.argument("name")
@_setting_options
@connection_options
@json_option
def create(name: str, *, connection: Connection, as_json: bool, **settings: Any) -> None:
    """Create a key and print its secret, once. What is stored is a hash of it.

    Without options the key may send inference requests to every model.
    """
    created = _run(connection, lambda keys: keys.create({"name": name, **_fields(settings)}))
    _print_secret(created, as_json=as_json)


@key.command("list")
@click.option("--all", "with_ended", is_flag=True, help="Revoked and expired keys too.")
@connection_options
@json_option
def list_keys(*, connection: Connection, with_ended: bool, as_json: bool) -> None:
    """List the keys."""
    keys = _run(connection, lambda source: source.list())
    shown = [key for key in keys if with_ended or key["state"] == "active"]
    if as_json:
        print_json({"keys": shown})
    else:
        key_view.print_keys(shown)


@key.command()
@click.argument("name")
@connection_options
@json_option
def show(name: str, *, connection: Connection, as_json: bool) -> None:
    """Show one key."""
    found = _run(connection, lambda keys: _find(keys.list(), name))
    if as_json:
        print_json(found)
    else:
        key_view.print_key(found)


@key.command()
@click.argument("name")
@click.option("--name", "new_name", help="Its new name.")
@_setting_options
@connection_options
@json_option
def edit(name: str, *, new_name: str | None, connection: Connection, as_json: bool, **settings: Any) -> None:
    """Change a key. What no option names stays; `none` takes a limit away, and --budget none all budgets."""
    fields = ({} if new_name is None else {"name": new_name}) | _fields(settings)
    if not fields:
        raise click.UsageError("name what to change; --help lists the options")
    edited = _run(connection, lambda keys: keys.edit(name, fields))
    if as_json:
        print_json(edited)
    else:
        key_view.print_key(edited)


@key.command()
@click.argument("name")
@click.option("--grace", default="0s", show_default=True, help="For how long the old secret goes on working: 24h, 7d.")
@connection_options
@json_option
def rotate(name: str, *, grace: str, connection: Connection, as_json: bool) -> None:
    """Give a key a new secret and print it, once."""
    rotated = _run(connection, lambda keys: keys.edit(name, {"rotate": True, "grace": grace}))
    _print_secret(rotated, as_json=as_json)


@key.command()
@click.argument("name")
@click.option("--now", is_flag=True, help="End its running requests too, each with an error.")
@connection_options
@json_option
def revoke(name: str, *, now: bool, connection: Connection, as_json: bool) -> None:
    """Revoke a key for good. Its usage stays in the ledger."""
    revoked = _run(connection, lambda keys: keys.revoke(name, now=now))
    if as_json:
        print_json(revoked)
    else:
        click.echo(f"revoked {revoked['name']} ({revoked['id']})")


@key.command("export")
@connection_options
def export_keys(*, connection: Connection) -> None:
    """Print every key with the hash of its secret as JSON, for `cortex key import` elsewhere."""
    keys = _run(connection, lambda source: source.list(with_hashes=True))
    print_json({"keys": [key for key in keys if key["state"] != "revoked"]})


@key.command("import")
@click.argument("file", type=click.File("rb"))
@connection_options
def import_keys(file: Any, *, connection: Connection) -> None:
    """Import the keys that `cortex key export` printed; - reads stdin. Keys that are there already stay as they are."""
    try:
        records = msgspec.json.decode(file.read(), type=_Export).keys
    except (msgspec.MsgspecError, RecursionError) as error:
        _fail(KeyCommandError(f"{file.name} is not what `cortex key export` prints: {error}"))
    imported = _run(connection, lambda keys: keys.import_keys(records))
    click.echo(f"imported {imported} of {len(records)} keys; the others were there already")


class _Export(msgspec.Struct):
    keys: list[dict[str, Any]]


def _run(connection: Connection, command: Callable[[KeySource], _Result]) -> _Result:
    try:
        return command(key_source(connection))
    except KeyCommandError as error:
        _fail(error)


def _fail(error: KeyCommandError) -> NoReturn:
    print_error(f"error: {error}")
    sys.exit(UNAVAILABLE if isinstance(error, Unavailable) else REFUSED)


def _find(keys: list[dict[str, Any]], name_or_id: str) -> dict[str, Any]:
    """By id, else by the name of a key that is not revoked."""
    for found in keys:
        if found["id"] == name_or_id:
            return found
    for found in keys:
        if found["name"] == name_or_id and found["state"] != "revoked":
            return found
    raise KeyCommandError(f"there is no key with the name or id '{name_or_id}'; `cortex key list` lists them")


def _fields(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that options set."""
    fields: dict[str, Any] = {}
    for name, value in settings.items():
        if value is None or value == ():
            continue
        if name in {"verbs", "observe"}:
            fields[name] = [] if value == "none" else [word.strip() for word in value.split(",")]
        elif name in {"may", "budgets"}:
            fields[name] = [] if value == ("none",) and name == "budgets" else list(value)
        else:
            fields[name] = None if value == "none" else value
    return fields


def _print_secret(created: dict[str, Any], *, as_json: bool) -> None:
    """The secret on stdout, so that it can be piped; what else there is to say on stderr."""
    if as_json:
        print_json(created)
        return
    click.echo(created["secret"])
    print_error(f"{created['name']} ({created['id']}): the line above is its secret, which is not shown again")
    if created["old_secret_until"] is not None:
        print_error("the old secret still works; `cortex key show` says until when")
