"""Measure what open pages of the console cost the gateway, in CPU beside that of its traffic. See scripts/soak --pages.

A gateway serves a steady rate of requests from the demo's neurons, which are another process. Rounds without pages and
rounds with them take turns; a page is a connection that follows `/admin/events`, as an open page is. The cost of a
request is that of the rounds without pages; what a round with pages took beyond it is the cost of the pages.
"""

from __future__ import annotations

import json
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import httpx
from soak_load import Listeners, Traffic, gateway_figures, gateway_running, in_a_thread

from gateway.cli.param_types import Duration

SETTLE_S = 2.0
LEAST_RATE = 0.9
"""Of the rate that was asked for. Below it the machine is too busy for a steady rate."""


@dataclass(frozen=True)
class Round:
    """CPU of the gateway's process in s per s, and requests per s."""

    has_pages: bool
    cpu: float
    rate: float

    def __str__(self) -> str:
        """One line."""
        pages = "with pages" if self.has_pages else "without"
        return f"{pages:>10}  {self.rate:6.1f} requests/s  {self.cpu * 100:5.1f} % of a core"


def share_of_pages(rounds: list[Round], rate: float) -> float:
    """CPU of the pages, as a share of that of the traffic at this rate: the median of neighbouring rounds.

    A round's own rate counts, as a busy machine may send fewer requests: the cost of a request comes from the round
    without pages.
    """
    shares = []
    for one, other in pairwise(rounds):
        if one.has_pages != other.has_pages:
            without, with_pages = sorted((one, other), key=lambda each: each.has_pages)
            request_s = without.cpu / without.rate
            shares.append((with_pages.cpu - request_s * with_pages.rate) / (request_s * rate))
    return statistics.median(shares)


@click.command(epilog="Exit code: 0 within the limit, 1 above it, 2 not measured, 130 after Ctrl-C.")
@click.option("--pages", type=click.IntRange(1), default=50, show_default=True, help="How many.")
@click.option("--limit", type=float, default=5.0, show_default=True, help="Percent of the traffic's CPU.")
@click.option("--rate", type=click.FloatRange(1), default=200.0, show_default=True, help="Requests per second.")
@click.option("--model", default="helexa/small", show_default=True, help="The model or alias to ask.")
@click.option("--words", type=click.IntRange(1), default=10, show_default=True, help="The longest answer.")
@click.option(
    "--speed", type=click.FloatRange(min=0, min_open=True), default=100.0, show_default=True, help="Of the models."
)
@click.option("--rounds", type=click.IntRange(2), default=12, show_default=True, help="Of both kinds together.")
@click.option("--round", "round_s", type=Duration(), default="10s", show_default=True, help="How long a round is.")
@click.option("--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write the rounds here.")
@click.help_option("-h", "--help")
def page_cost(**options: Any) -> None:
    """Measure what open pages of the console cost the gateway, in CPU beside that of its traffic."""
    pages, rate = options["pages"], options["rate"]
    stop, rounds = threading.Event(), list[Round]()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with (
        tempfile.TemporaryDirectory(prefix="cortex-pages-") as folder,
        gateway_running(Path(folder), options["speed"]) as site,
        httpx.Client(base_url=site.admin, trust_env=False, timeout=60) as client,
    ):
        traffic = Traffic(site, [options["model"]], rate, options["words"])
        with in_a_thread(traffic.send):
            while len(rounds) < options["rounds"] and not stop.is_set():
                has_pages = len(rounds) % 4 in {1, 2}  # 0 1 1 0: what drifts touches both kinds alike
                with in_a_thread(Listeners(site, pages if has_pages else 0).listen):
                    rounds += _round(client, traffic, options["round_s"], stop, has_pages=has_pages)
                    print(rounds[-1] if rounds else "", flush=True)
    if options["json_path"]:
        options["json_path"].write_text(json.dumps([asdict(one) for one in rounds], indent=1) + "\n", encoding="utf-8")
    if stop.is_set():
        sys.exit(130)
    print(f"answers: {dict(traffic.outcomes)}")
    if statistics.median(one.rate for one in rounds) < LEAST_RATE * rate:
        print(f"not measured: this machine cannot keep up {rate:.0f} requests/s; name a lower --rate")
        sys.exit(2)
    share = share_of_pages(rounds, rate) * 100
    print(
        f"{pages} pages cost {share:.1f} % of the CPU of {rate:.0f} requests/s; the limit is {options['limit']:.1f} %"
    )
    sys.exit(share > options["limit"])


def _round(
    client: httpx.Client, traffic: Traffic, round_s: float, stop: threading.Event, *, has_pages: bool
) -> list[Round]:
    """One round; none if it was stopped."""
    if stop.wait(SETTLE_S):
        return []
    cpu_s, sent, begun = _cpu_s(client), traffic.answered, time.monotonic()
    if stop.wait(round_s):
        return []
    cpu_s, sent, passed_s = _cpu_s(client) - cpu_s, traffic.answered - sent, time.monotonic() - begun
    return [Round(has_pages, cpu_s / passed_s, sent / passed_s)]


def _cpu_s(client: httpx.Client) -> float:
    return gateway_figures(client)["process_cpu_seconds_total"]


if __name__ == "__main__":
    page_cost(prog_name="scripts/soak --pages")
