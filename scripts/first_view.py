"""Measure how soon the console shows its first page: in Chromium, on a demo that this starts.

    .venv/bin/python scripts/first_view.py --times 20

Each time a new browser context opens the overview, signed in, with an empty cache and again with a full one. Times are
medians in ms from the start of the navigation: the first paint, the first paint with the hosts in it, and the charts.
Needs the extra `browser` and Debian's Chromium (scripts/install-browser).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import BrowserContext, CDPSession, Page, sync_playwright
from soak_load import Site, demo_running

WATCH = """
window.views = {};
new MutationObserver(() => {
  if (!views.data && document.querySelector("article.host")) {
    views.data = 1;
    requestAnimationFrame(() => setTimeout(() => (views.data = performance.now()))); // when that frame is painted
  }
  if (!views.charts && document.querySelectorAll(".u-wrap").length === 6) views.charts = performance.now();
}).observe(document, { childList: true, subtree: true });
"""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def main() -> None:
    """Open the page so many times, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="20 by default")
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser; /usr/bin/chromium by default")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    options = parser.parse_args()
    views: list[dict[str, Any]] = []
    with (
        tempfile.TemporaryDirectory(prefix="cortex-view-") as folder,
        demo_running(Path(folder), speed=1.0) as site,
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        for _ in range(options.times):
            context = browser.new_context()
            views += _views(context, site)
            context.close()
        browser.close()
    for cache in ("empty", "full"):
        chosen = [view for view in views if view["cache"] == cache]
        medians = {name: _median(view[name] for view in chosen) for name in chosen[0] if name != "cache"}
        print(f"cache {cache:<6} " + "  ".join(f"{name} {value:,.0f}" for name, value in medians.items()))
    if options.json:
        options.json.write_text(json.dumps(views, indent=1) + "\n", encoding="utf-8")


def _median(values: Iterable[float | None]) -> float:
    """Of what is known: a busy browser may not report the first paint."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else float("nan")


def _views(context: BrowserContext, site: Site) -> Iterator[dict[str, Any]]:
    """The first view of a context, and one more."""
    context.request.post(f"{site.admin}/admin/session", data={"key": site.key})
    page = context.new_page()
    devtools = context.new_cdp_session(page)
    for domain in ("Network", "Performance"):
        devtools.send(f"{domain}.enable")
    page.add_init_script(WATCH)
    for cache in ("empty", "full"):
        page.goto("about:blank")
        yield {"cache": cache, **_view(page, devtools, site)}


def _view(page: Page, devtools: CDPSession, site: Site) -> dict[str, float | None]:
    received: list[float] = []
    devtools.on("Network.loadingFinished", lambda event: received.append(event["encodedDataLength"]))
    before = _performance(devtools)
    page.goto(site.admin)
    while not page.evaluate("views.charts"):
        page.wait_for_timeout(50)
    after = _performance(devtools)
    return {
        "first_paint": page.evaluate(PAINT),
        "with_data": page.evaluate("views.data"),
        "charts": page.evaluate("views.charts"),
        "requests": sum(size > 0 for size in received) + 1,  # the stream of events has no end
        "bytes": sum(received),
        "cpu_ms": (after["ThreadTime"] - before["ThreadTime"]) * 1000,
        "layouts": after["LayoutCount"] - before["LayoutCount"],
        "style_recalcs": after["RecalcStyleCount"] - before["RecalcStyleCount"],
    }


def _performance(devtools: CDPSession) -> dict[str, float]:
    return {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}


if __name__ == "__main__":
    main()
