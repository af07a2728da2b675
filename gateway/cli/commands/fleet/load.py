"""`cortex load` and `cortex unload`: place a model by hand, and wait until that is done."""

from __future__ import annotations

import json
import time
from typing import Any

import click
import httpx

from gateway.cli import api_client
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.admin_command import run_admin_command
from gateway.cli.connection import Connection
from gateway.cli.connection_options import connection_options
from gateway.cli.terminal import Progress, print_error

__all__ = ["load", "unload"]

DONE, REFUSED = 0, 1  # exit codes
POLL_S = 0.5

_wait_option = click.option("--no-wait", is_flag=True, help="Return as soon as the gateway has begun.")


@click.command()
@click.argument("model")
@click.option("--on", "neuron", metavar="NEURON", help="The neuron. Without it: where a request would have it loaded.")
@_wait_option
@connection_options
def load(model: str, neuron: str | None, *, connection: Connection, no_wait: bool) -> None:
    """Load a model, and wait until it is loaded.

    MODEL is an id or an alias. Exit code 1 if the gateway refuses or the load fails, 2 if the gateway does not answer.
    Ctrl-C ends the waiting, not the load.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        body = _place(client, gateway, "load", model=model, node=neuron)
        if body["state"] == "loaded":
            click.echo(f"{body['model']}: loaded on {body['node']} already")
            return DONE
        usual = "" if body["estimate_s"] is None else f"; earlier loads took {body['estimate_s']:.0f} s"
        click.echo(f"{body['model']}: loading on {body['node']}{usual}")
        return DONE if no_wait else _wait_until_loaded(client, gateway, body)

    run_admin_command("load", connection, command)


@click.command()
@click.argument("model")
@click.option("--from", "neuron", metavar="NEURON", help="The neuron. Without it: every neuron where it is idle.")
@_wait_option
@connection_options
def unload(model: str, neuron: str | None, *, connection: Connection, no_wait: bool) -> None:
    """Unload a model, and wait until it is unloaded.

    MODEL is an id or an alias. Exit code 1 if the gateway refuses, for example because the model is in use, 2 if the
    gateway does not answer.
    """

    def command(client: httpx.Client, gateway: GatewayAddress) -> int:
        body = _place(client, gateway, "unload", model=model, node=neuron)
        for reason in body["refused"]:
            click.echo(reason)
        click.echo(f"{body['model']}: unloading from {', '.join(body['nodes'])}")
        return DONE if no_wait else _wait_until_unloaded(client, gateway, body)

    run_admin_command("unload", connection, command)


def _place(client: httpx.Client, gateway: GatewayAddress, action: str, **body: str | None) -> dict[str, Any]:
    url, data = f"{gateway.admin}/admin/{action}", json.dumps(body).encode()
    return api_client.post(client, url, ("model", "state"), token=gateway.required_token(), data=data)


def _get_fleet(client: httpx.Client, gateway: GatewayAddress) -> dict[str, Any]:
    url = f"{gateway.admin}/admin/fleet"
    return api_client.get(client, url, ("nodes", "loads", "failing"), token=gateway.required_token())


def _wait_until_loaded(client: httpx.Client, gateway: GatewayAddress, body: dict[str, Any]) -> int:
    model, node = body["model"], body["node"]
    with Progress(click.echo) as progress:
        while True:
            fleet = _get_fleet(client, gateway)
            load = next((each for each in fleet["loads"] if each["node"] == node and _is(each["model"], model)), None)
            if load is None:
                break
            progress.show(f"{model}: loading on {node}", load["elapsed_s"], load["estimate_s"])
            time.sleep(POLL_S)
        if "loaded" in _states(fleet, node, model):
            progress.report(f"{model}: loaded on {node}")
            return DONE
        failed = (each for each in fleet["failing"] if each["node"] == node and _is(each["model"], model))
        reason = next((each["reason"] for each in failed), "the load ended; `cortex status` shows the neuron")
    print_error(f"{model}: not loaded on {node}: {reason}")
    return REFUSED


def _wait_until_unloaded(client: httpx.Client, gateway: GatewayAddress, body: dict[str, Any]) -> int:
    model, left = body["model"], list(body["nodes"])
    with Progress(click.echo) as progress:
        while left:
            fleet = _get_fleet(client, gateway)
            for node in list(left):
                states = _states(fleet, node, model)
                if not {"loaded", "unloading"} & set(states):
                    left.remove(node)
                    end = f"asleep on {node}; a load wakes it" if "asleep" in states else f"unloaded from {node}"
                    progress.report(f"{model}: {end}")
            if left:
                progress.show(f"{model}: unloading from {', '.join(left)}")
                time.sleep(POLL_S)
    return DONE


def _states(fleet: dict[str, Any], node: str, model: str) -> list[str]:
    """The status of a model on a node."""
    found = (each for each in fleet["nodes"] if each["name"] == node)
    return [each["status"] for view in found for each in view["models"] if _is(each["id"], model)]


def _is(neuron_id: str, model: str) -> bool:
    """Whether a neuron's name for a model, which may begin with the source, is that of this one."""
    return neuron_id == model or neuron_id.endswith(f":{model}")
