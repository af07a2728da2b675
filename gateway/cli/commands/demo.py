"""`cortex demo`: chooses folder and ports; `gateway.cli.demo` writes the files and runs everything."""

from __future__ import annotations

import errno
import socket
import sys
from pathlib import Path

import click
import trio

from gateway.cli.demo.files import make_home
from gateway.cli.terminal import print_error
from gateway.server.listen import CannotListen

__all__ = ["demo", "run"]

PORT_ATTEMPTS = 5


@click.command()
@click.option(
    "--dir",
    "folder",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="a new folder under the temporary directory, which is kept",
    help="Where to write cortex.toml and models.toml.",
)
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    metavar="FACTOR",
    help="Speed of the simulated neurons: 10 makes them answer ten times as fast as the real models.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65534),
    default=31313,
    show_default=True,
    help="Port of the API on 127.0.0.1; the metrics port is the next one. If it is 0, or one is in use: free ports.",
)
def demo(folder: Path | None, speed: float, port: int) -> None:
    """Run a gateway with three simulated neurons.

    Prints commands to try, and runs until Ctrl-C.
    """
    sys.exit(run(folder, speed=speed, port=port))


def run(folder: Path | None, *, speed: float, port: int) -> int:
    """Run the demo until Ctrl-C; returns the exit code.

    Args:
        folder: Where `models.toml` and `cortex.toml` go; they are kept. None makes a temporary folder.
        speed: Of the simulated neurons, above 0; 1 is that of the real models.
        port: Of the API on 127.0.0.1; the metrics port is the next one. If 0, or if one is in use, the kernel chooses.
    """
    exit_code = 1
    try:
        home = make_home(folder)
        exit_code = _run_on_free_ports(home, speed, port)
    except* OSError as group:
        print_error(f"cortex demo: {_text_of(_first(group))}")
    return exit_code


def _run_on_free_ports(home: Path, speed: float, port: int) -> int:
    """Run on ports that are free; on others if another process takes one before the gateway listens on it."""
    from gateway.cli.demo import server as demo_server  # noqa: PLC0415 - Quart and Hypercorn take 300 ms to import

    ports = _free_ports(port)
    for _ in range(PORT_ATTEMPTS - 1):
        try:
            return trio.run(demo_server.run, home, speed, ports)
        except* CannotListen as group:
            if port:
                print_error(f"{_first(group)}; using free ports instead")
            ports = _reserve(0, 0)
    return trio.run(demo_server.run, home, speed, ports)


def _text_of(error: BaseException) -> str:
    """Without Python's `[Errno 13]`."""
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _first(group: BaseExceptionGroup[OSError]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _free_ports(wanted: int) -> tuple[int, int]:
    """Ports for API and metrics. Another process may take them before the gateway does."""
    if wanted:
        try:
            return _reserve(wanted, wanted + 1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            print_error(f"port {wanted} or {wanted + 1} is in use by another process; using free ports instead")
    return _reserve(0, 0)


def _reserve(api: int, metrics: int) -> tuple[int, int]:
    """Bind both ports at the same time and release them: they exist, are free, and differ."""
    with socket.socket() as one, socket.socket() as other:
        for sock, port in ((one, api), (other, metrics)):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the gateway does: TIME_WAIT does not matter
            sock.bind(("127.0.0.1", port))
        return one.getsockname()[1], other.getsockname()[1]
