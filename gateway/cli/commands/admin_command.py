"""Runs a command that asks the admin API of a gateway, and turns its errors into exit codes. Blocking."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

import httpx

from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress, NoToken
from gateway.cli.connection import Connection
from gateway.cli.terminal import print_error

__all__ = ["run_admin_command"]

REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 130  # exit codes


def run_admin_command(
    name: str, connection: Connection, command: Callable[[httpx.Client, GatewayAddress], int]
) -> NoReturn:
    """Run `command`, which returns an exit code; 1 if the gateway refuses, 2 if it does not answer."""
    gateway = connection.address_if_possible()
    try:
        gateway.required_token()
        with api_client.open_client() as client:
            exit_code = command(client, gateway)
    except NoToken as error:
        print_error(f"cortex {name}: {error}")
        exit_code = REFUSED
    except ApiError as error:
        hint = "; --url sets the address" if error.message is None else ""
        print_error(f"cortex {name}: {error.message or error}{hint}")
        exit_code = UNREACHABLE if error.message is None else REFUSED
    except KeyboardInterrupt:
        print_error("interrupted; the gateway goes on with what it has begun")
        exit_code = INTERRUPTED
    sys.exit(exit_code)
