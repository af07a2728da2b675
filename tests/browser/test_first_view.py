"""What the first view of the console costs, in figures that do not depend on the machine.

`scripts/first_view.py` measures the time.
"""

from __future__ import annotations

import pytest

REQUESTS = 18  # 13 files, the page, the session, the events; two to spare
BYTES = 60_000
LAYOUTS, STYLE_RECALCULATIONS = 10, 60  # measured: 4 and 24, and two more each second


@pytest.fixture
def visits(demo, open_page):
    """Opens the overview, signed in, and yields what each visit costs."""
    page = open_page()
    page.wait_for_selector(".u-wrap")
    devtools = page.context.new_cdp_session(page)
    devtools.send("Network.enable")
    devtools.send("Performance.enable")
    sizes = []
    devtools.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))

    def visit():
        page.goto("about:blank")
        sizes.clear()
        before = counts(devtools)
        page.goto(demo.admin)
        page.wait_for_selector("article.host")
        page.wait_for_selector(".u-wrap")
        after = counts(devtools)
        sent = [size for size in sizes if size]  # what came from the browser's cache has none
        return {
            "requests": len(sent) + 1,  # the stream of events does not end
            "bytes": sum(sent),
            "layouts": after["LayoutCount"] - before["LayoutCount"],
            "recalculations": after["RecalcStyleCount"] - before["RecalcStyleCount"],
        }

    visit.empty_cache = lambda: devtools.send("Network.clearBrowserCache")
    return visit


def counts(devtools):
    return {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}


def test_first_view_is_small(visits):
    visits.empty_cache()
    cost = visits()
    assert cost["requests"] <= REQUESTS, cost
    assert 30_000 < cost["bytes"] < BYTES, cost
    assert cost["layouts"] <= LAYOUTS, cost
    assert cost["recalculations"] <= STYLE_RECALCULATIONS, cost


def test_next_view_asks_for_no_file_again(visits):
    """But for the page: the browser keeps the others, and asks for the session and the events."""
    visits()
    cost = visits()
    assert cost["requests"] <= 3, cost
    assert cost["bytes"] < 3_000, cost
