"""`cortex top`: hosts, models and requests of a gateway, live, until q or Ctrl-C."""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager

import click
from rich.console import RenderableType
from rich.live import Live
from rich.text import Text

from gateway.cli.api_client import ApiError, GatewayAddress, get_text, open_client
from gateway.cli.connection import Connection
from gateway.cli.connection_options import asking_options
from gateway.cli.gateway_state import read_state
from gateway.cli.live_figures import LiveFigures, parse_scrape
from gateway.cli.terminal import console, print_error
from gateway.cli.views.top_view import Trend, render_top

__all__ = ["top"]

REFUSED, UNREACHABLE = 1, 2  # exit codes


@click.command()
@click.option(
    "--interval",
    metavar="SECONDS",
    type=click.FloatRange(0.2, 60),
    default=1.0,
    show_default=True,
    help="Between frames.",
)
@asking_options
def top(*, connection: Connection, interval: float) -> None:
    """Show hosts, models and requests, live.

    A block of a memory bar is a model: solid when it is loaded, hatched while it loads or sleeps, dots are free. q or
    Ctrl-C ends it. Without a terminal it prints one frame. Exit code 2 if the gateway does not answer.
    """
    address = connection.address_if_possible()
    screen = _Screen(address)
    out = console()
    try:
        first = screen.frame()
        if not out.is_terminal:
            out.print(first)
            return
        with _keys() as pressed, Live(first, console=out, screen=True, auto_refresh=False) as live:
            while pressed(interval) != "q":
                try:
                    live.update(screen.frame(), refresh=True)
                except ApiError as error:
                    live.update(Text(f"{error}; still trying", style="bold red"), refresh=True)
    except ApiError as error:
        if error.message is not None:
            print_error(f"cortex top: {error.message}")
            sys.exit(REFUSED)
        print_error(f"cortex top: {error}; --endpoint sets the address")
        sys.exit(UNREACHABLE)
    except KeyboardInterrupt:
        pass


class _Screen:
    """Reads the gateway for each frame, and remembers the last minute."""

    def __init__(self, address: GatewayAddress) -> None:
        self._address = address
        self._figures = LiveFigures()
        self._trends = {"requests/s": Trend(), "tokens/s": Trend()}

    def frame(self) -> RenderableType:
        """The present state. Raises ApiError if the gateway does not answer."""
        state = read_state(self._address)
        try:
            with open_client() as client:
                text = get_text(client, f"{self._address.admin}/metrics")
            self._figures.add(parse_scrape(text, time.monotonic()))
        except (ApiError, ValueError):  # a metrics port that is out of reach must not hide the rest
            pass
        neurons = self._figures.by_neuron()
        self._trends["requests/s"].add(sum(each.requests_per_s for each in neurons))
        self._trends["tokens/s"].add(sum(each.tokens_per_s for each in neurons))
        return render_top(state, self._figures, self._trends)


@contextmanager
def _keys() -> Iterator[_Pressed]:
    """Keys without Enter, as long as stdin is a terminal; the terminal is restored at the end."""
    if not sys.stdin.isatty():
        yield _Pressed(is_terminal=False)
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _Pressed(is_terminal=True)
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Pressed:
    """Waits for a key."""

    def __init__(self, *, is_terminal: bool) -> None:
        self._is_terminal = is_terminal

    def __call__(self, within_s: float) -> str:
        """The key that is pressed within this time, else the empty string."""
        if not self._is_terminal:
            time.sleep(within_s)
            return ""
        return sys.stdin.read(1) if select.select([sys.stdin], [], [], within_s)[0] else ""
