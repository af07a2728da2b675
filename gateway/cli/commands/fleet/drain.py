"""`cortex drain` and `cortex undrain`: ask a gateway to stop or resume sending requests to a neuron."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click

from gateway.cli import api_client
from gateway.cli.api_client import ApiError, NoToken
from gateway.cli.connection import Connection
from gateway.cli.connection_options import asking_options
from gateway.cli.terminal import Progress, print_error
from gateway.cli.views.drain_view import progress_lines

__all__ = ["drain", "undrain"]

POLL_S = 0.5
REFUSED, UNREACHABLE, INTERRUPTED = 1, 2, 130  # exit codes


@click.command()
@click.argument("neuron")
@click.option(
    "--move", is_flag=True, help="First load the models that only this neuron has on others; it serves them until then."
)
@asking_options
def drain(neuron: str, *, connection: Connection, move: bool) -> None:
    """Drain a neuron: send it no new requests.

    Returns when its running requests have ended. It stays drained, also through restarts, until `cortex undrain`.
    Exit code 1 if the gateway refuses, or cannot move a model: then the neuron is not
    drained. 2 if the gateway does not answer. Ctrl-C ends the waiting, not the drain.
    """
    try:
        sys.exit(_run(connection, neuron, "drain", {"move": move}))
    except KeyboardInterrupt:
        print_error(f"the drain continues; `cortex undrain {neuron}` ends it")
        sys.exit(INTERRUPTED)


@click.command()
@click.argument("neuron")
@asking_options
def undrain(neuron: str, *, connection: Connection) -> None:
    """Send requests to a drained neuron again.

    Exit code 1 if the gateway refuses, 2 if it does not answer.
    """
    sys.exit(_run(connection, neuron, "undrain", {}))


def _run(connection: Connection, neuron: str, action: str, body: Mapping[str, Any]) -> int:
    """Post the action; print its progress until it is complete; return the exit code."""
    gateway = connection.address_if_possible()
    url = f"{gateway.admin}/admin/nodes/{api_client.segment(neuron)}"
    printed: set[str] = set()

    def print_progress(view: Mapping[str, Any]) -> None:
        for line in progress_lines(view):
            if line not in printed:
                printed.add(line)
                progress.report(line)

    progress = Progress(click.echo)
    try:
        token = gateway.required_token()
        with api_client.open_client() as client, progress:
            view = api_client.post(client, f"{url}/{action}", ("state",), token=token, data=json.dumps(body).encode())
            while view["state"] in {"moving", "draining"} and action == "drain":
                print_progress(view)
                progress.show(f"{neuron}: {view['state']}, {view['leases']} running requests left")
                time.sleep(POLL_S)
                view = api_client.get(client, url, ("state",), token=token)
    except NoToken as error:
        print_error(f"cortex {action}: {error}")
        return REFUSED
    except ApiError as error:
        hint = "; --admin sets the address" if error.message is None else ""
        print_error(f"cortex {action}: {error}{hint}")
        return UNREACHABLE if error.status is None else REFUSED
    print_progress(view)
    return REFUSED if action == "drain" and view["state"] == "open" else 0
