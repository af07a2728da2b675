"""Keep the console's pages open in Chromium while a demo has traffic, and say whether memory grows.

The neurons of the demo are another process, so that the memory is that of the gateway. Each page has a browser context
of its own. One more walks through all pages between two samples, so that what a page leaves behind when it closes shows
too. A sample is the browser's JavaScript heap after a garbage collection, its DOM nodes and event listeners, and the
gateway's resident memory, which `/metrics` states. The trend is a line through the samples after the warm-up, in which
what is bounded fills up (the last requests, the last events).
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import httpx
from playwright.sync_api import Browser, BrowserContext, CDPSession, Error, Page, sync_playwright
from soak_load import Site, Traffic, gateway_figures, gateway_running, in_a_thread
from soak_trend import Trend, trend_of

from gateway.cli.param_types import Duration

CHROMIUM = "/usr/bin/chromium"
MB = 1_000_000
WALK, GATEWAY = "walk", "gateway"
DEVTOOLS_METRICS = {"heap": "JSHeapUsedSize", "nodes": "Nodes", "listeners": "JSEventListeners"}
DIGITS = {"heap": (MB, 2), "rss": (MB, 1)}

Series = dict[tuple[str, str], list[tuple[float, float]]]
"""(page or gateway, quantity) -> (seconds since the start, value)."""


@click.command(epilog="Exit code: 0 flat, 1 growing, 2 too few samples, 130 after Ctrl-C.")
@click.option("--for", "duration_s", type=Duration(), default="1h", show_default=True, help="How long.")
@click.option("--every", "every_s", type=Duration(), help="Time between samples.  [default: a sixtieth of --for]")
@click.option(
    "--warm-up", "warm_up_s", type=Duration(), help="What is before is no trend.  [default: a third of --for]"
)
@click.option("--rate", type=click.FloatRange(min=0), default=7.0, show_default=True, help="Requests per second.")
@click.option("--words", type=click.IntRange(1), default=30, show_default=True, help="The longest answer.")
@click.option("--model", "models", multiple=True, help="Ask this one; may be repeated.  [default: the first alias]")
@click.option(
    "--speed", type=click.FloatRange(min=0, min_open=True), default=4.0, show_default=True, help="Of the demo's models."
)
@click.option(
    "--heap-tolerance",
    type=float,
    default=1.0,
    show_default=True,
    metavar="MB",
    help="Rise of a page's heap that is flat.",
)
@click.option(
    "--rss-tolerance",
    type=float,
    default=4.0,
    show_default=True,
    metavar="MB",
    help="The same of the gateway's memory.",
)
@click.option(
    "--nodes-tolerance",
    type=float,
    default=2000,
    show_default=True,
    help="The same of DOM nodes and of event listeners.",
)
@click.option("--admin", help="Address of a running console; --api and --key then too.  [default: start a demo]")
@click.option("--api", help="Where its API is.")
@click.option("--key", envvar="CORTEX_KEY", help="A key with the verbs read and infer.")
@click.option("--chromium", default=CHROMIUM, show_default=True, help="The browser.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Write every sample to this file."
)
@click.help_option("-h", "--help")
@click.pass_context
def soak(context: click.Context, /, **options: Any) -> None:
    """Keep the console's pages open in Chromium while a demo has traffic, and say whether memory grows."""
    duration_s = options["duration_s"]
    options["every_s"] = options["every_s"] or duration_s / 60
    options["warm_up_s"] = duration_s / 3 if options["warm_up_s"] is None else options["warm_up_s"]
    if options["admin"] and not (options["api"] and options["key"]):
        raise click.UsageError("--admin needs --api and --key")
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    begun, series = time.time(), Series()
    with _demo(options) as demo, httpx.Client(base_url=demo.admin, trust_env=False, timeout=60) as client:
        client.headers["authorization"] = f"Bearer {demo.key}"
        traffic = Traffic(demo, list(options["models"]) or [_first_alias(client)], options["rate"], options["words"])
        with in_a_thread(traffic.send):
            try:
                with _browser(options["chromium"]) as browser:
                    _sample_until(stop, series, Pages(browser, demo), client, options)
            except Error:
                if not stop.is_set():  # Ctrl-C ends Chromium too
                    raise
    tolerances = {"heap": options["heap_tolerance"] * MB, "rss": options["rss_tolerance"] * MB}
    trends = {
        name: trend_of(samples, options["warm_up_s"], tolerances.get(name[1], options["nodes_tolerance"]))
        for name, samples in series.items()
    }
    print("".join(_report(trends, traffic, time.time() - begun)))
    if options["json_path"]:
        options["json_path"].write_text(_json(options, series, trends, traffic, begun), encoding="utf-8")
    context.exit(130 if stop.is_set() else _exit_code(trends))


@contextmanager
def _demo(options: dict[str, Any]) -> Iterator[Site]:
    if options["admin"]:
        yield Site(options["api"], options["admin"].rstrip("/"), options["key"])
        return
    with (
        tempfile.TemporaryDirectory(prefix="cortex-soak-") as folder,
        gateway_running(Path(folder), options["speed"]) as site,
    ):
        yield site


def _first_alias(client: httpx.Client) -> str:
    """Of the catalogue. Ends the script without one."""
    aliases = client.get("/health").json().get("aliases", [])
    if not aliases:
        raise click.UsageError("the gateway has no alias: name a --model")
    return str(aliases[0]["name"])


@contextmanager
def _browser(program: str) -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


# Samples ..............................................................................................................


class Pages:
    """Every page of the console, open at the same time, and one that walks through them."""

    def __init__(self, browser: Browser, site: Site) -> None:
        self._site = site
        self._walker = self._signed_in(browser.new_context())
        links = self._walker[0].locator("nav.pages a")
        self.names = [str(link.get_attribute("href")).removeprefix("#/") for link in links.all()]
        self.pages = {name: self._signed_in(browser.new_context(), name) for name in self.names}

    def _signed_in(self, context: BrowserContext, name: str = "") -> tuple[Page, CDPSession]:
        context.request.post(f"{self._site.admin}/admin/session", data={"key": self._site.key})
        page = context.new_page()
        page.goto(f"{self._site.admin}/#/{name}")
        page.wait_for_selector(f"main[data-page={name}]" if name else "main[data-page]")
        devtools = context.new_cdp_session(page)
        devtools.send("Performance.enable")
        return page, devtools

    def sample(self) -> Iterator[tuple[str, str, float]]:
        """(page, quantity, value) of each, now."""
        page = self._walker[0]
        for name in (*self.names[1:], self.names[0]):
            page.locator(f'nav.pages a[href="#/{name}"]').click()
            page.wait_for_selector(f"main[data-page={name}]")
        for name, (_, devtools) in {**self.pages, WALK: self._walker}.items():
            devtools.send("HeapProfiler.collectGarbage")
            metrics = {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
            for quantity, key in DEVTOOLS_METRICS.items():
                yield name, quantity, float(metrics[key])


def _sample_until(
    stop: threading.Event, series: Series, pages: Pages, client: httpx.Client, options: dict[str, Any]
) -> None:
    """Add a sample of everything each `every_s`, until the time is over or `stop` is set."""
    begun = time.monotonic()
    while not stop.wait(max(0.0, begun + _taken(series) * options["every_s"] - time.monotonic())):
        at = time.monotonic() - begun
        if at > options["duration_s"]:
            return
        rss = gateway_figures(client)["process_resident_memory_bytes"]
        for page, quantity, value in (*pages.sample(), (GATEWAY, "rss", rss)):
            series.setdefault((page, quantity), []).append((round(at, 1), value))
        if sys.stderr.isatty():
            print(f"\r\x1b[K{at:.0f} of {options['duration_s']:.0f} s", end="", file=sys.stderr, flush=True)


def _taken(series: Series) -> int:
    return max(map(len, series.values()), default=0)


# Report ...............................................................................................................


def _report(trends: dict[tuple[str, str], Trend | None], traffic: Traffic, passed_s: float) -> Iterator[str]:
    yield f"\n{passed_s:.0f} s, {traffic.answered} requests: {dict(traffic.outcomes)}\n\n"
    yield f"{'page':<12} {'what':<10} {'first':>10} {'settled':>10} {'end':>10} {'rise':>9} {'per hour':>9}  verdict\n"
    for (page, quantity), trend in trends.items():
        unit, digits = DIGITS.get(quantity, (1, 0))
        name = f"{page:<12} {quantity + (' MB' if unit == MB else ''):<10}"
        if trend is None:
            yield f"{name} too few samples after the warm-up\n"
            continue
        figures = "".join(f" {value / unit:>10,.{digits}f}" for value in (trend.first, trend.settled, trend.end))
        figures += "".join(f" {value / unit:>+9,.{digits}f}" for value in (trend.rise, trend.per_hour))
        yield f"{name}{figures}  {'flat' if trend.is_flat else 'GROWING'}\n"
    code = _exit_code(trends)
    yield f"\n{['Flat.', 'Growing.', 'Not measured: too few samples.'][code]}"


def _exit_code(trends: dict[tuple[str, str], Trend | None]) -> int:
    known = [trend for trend in trends.values() if trend is not None]
    if not known or len(known) < len(trends):
        return 2
    return 0 if all(trend.is_flat for trend in known) else 1


def _json(
    options: dict[str, Any], series: Series, trends: dict[tuple[str, str], Trend | None], traffic: Traffic, begun: float
) -> str:
    hidden = {"key", "json_path"}
    rows = []
    for (page, quantity), samples in series.items():
        trend = trends[page, quantity]
        figures = None if trend is None else {**asdict(trend), "rise": trend.rise, "is_flat": trend.is_flat}
        rows.append({"page": page, "quantity": quantity, "trend": figures, "samples": samples})
    body = {
        "begun": begun,
        "options": {name: value for name, value in options.items() if name not in hidden},
        "outcomes": {str(outcome): count for outcome, count in traffic.outcomes.items()},
        "exit_code": _exit_code(trends),
        "series": rows,
    }
    return json.dumps(body, indent=1) + "\n"


if __name__ == "__main__":
    soak(prog_name="scripts/soak")
