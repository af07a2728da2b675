"""The options with which every operator command names its gateway, as decorators."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gateway.cli.connection import Connection
from gateway.cli.options import admin_option, ca_option, config_option, token_option, url_option

__all__ = ["asking_options", "connection_options"]


def connection_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `-c`, `--url` and `--token`, and call it with `connection`."""

    @config_option
    @url_option
    @ca_option
    @token_option
    @functools.wraps(command)
    def with_connection(
        *arguments: Any, config: Path | None, url: str | None, ca: Path | None, token: str | None, **options: Any
    ) -> Any:
        return command(*arguments, connection=Connection(config, token, url=url, ca=ca), **options)

    return with_connection


def asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command that uses no files, which may also be given the addresses of both ports."""

    @config_option
    @url_option
    @click.option(
        "-e", "--endpoint", metavar="URL", help="The gateway's API. Without it: gateway.listen of cortex.toml."
    )
    @admin_option
    @ca_option
    @token_option
    @functools.wraps(command)
    def with_connection(
        *arguments: Any,
        config: Path | None,
        url: str | None,
        endpoint: str | None,
        admin: str | None,
        ca: Path | None,
        token: str | None,
        **options: Any,
    ) -> Any:
        return command(*arguments, connection=Connection(config, token, endpoint, admin, url, ca), **options)

    return with_connection
