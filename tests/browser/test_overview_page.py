"""The overview: problems, figures, and hosts with their memory."""

from __future__ import annotations

import re
import time

from fakes.browser import COLD, IMAGES, MIDDLE, go, keep_screenshot, wait_until
from playwright.sync_api import expect


def test_overview_shows_hosts_and_follows_the_fleet(demo, open_page, pytestconfig):
    """A drain elsewhere appears without a reload, first among the problems, and its button ends it."""
    page = open_page()
    for name in ("beast", "benjy", "quadbrat"):
        expect(page.get_by_role("article", name=f"Host {name}")).to_be_visible()
    beast = page.get_by_role("article", name="Host beast")
    expect(beast.get_by_role("row").filter(has_text=MIDDLE)).to_contain_text("loaded")
    expect(beast.get_by_role("img", name=re.compile("^Memory of GPU 0"))).to_be_visible()
    page.locator(".u-wrap").first.wait_for()
    for _ in range(4):
        demo.ask("helexa/small")
    if pytestconfig.getoption("--write-docs"):
        write_overview_image(demo, page)
    keep_screenshot(page, "overview-light")
    quadbrat = page.get_by_role("article", name="Host quadbrat")
    quadbrat.get_by_role("button", name="Drain").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("cortex drain quadbrat --move")
    dialog.get_by_role("button", name="Drain").click()
    problem = page.locator(".problem-list li").filter(has_text="node drained")
    expect(problem).to_contain_text("quadbrat")
    expect(page.locator("header.top")).to_contain_text("1 problem")
    keep_screenshot(page, "overview-problem")
    problem.get_by_role("button", name="Undrain").click()
    page.get_by_role("dialog").get_by_role("button", name="Undrain").click()
    expect(page.get_by_text("No problems")).to_be_visible()


def test_figures_of_the_last_hour_have_their_units(demo, open_page):
    """The chart of each is labelled for screen readers."""
    page = open_page()
    for name, unit in (
        ("Requests", r"[\d.]+ per s"),
        ("Tokens", r"[\d.]+ per s"),
        ("First token", r"[\d.]+ m?s · [\d.]+ m?s p50 · p95"),
        ("Queue", r"\d+ waiting"),
        ("Cache hits", r"[\d.]+ % of prompt tokens"),
        ("GPU load and power", r"[\d.]+ % · \d+ W"),
    ):
        figure = page.get_by_role("article").filter(has=page.get_by_role("heading", name=name, exact=True))
        expect(figure.get_by_role("img", name=f"{name} in the last hour")).to_be_visible()
        wait_until(lambda figure=figure, unit=unit: demo.ask("helexa/small") and has_text(figure, unit))


def has_text(element, pattern):
    return re.search(pattern, " ".join(element.inner_text().split())) is not None


def test_model_that_loads_is_hatched_on_its_gpu(demo, open_page):
    """In the memory that it will take; not once it is loaded. A request for it shows that it waited."""
    page = open_page()
    beast = page.get_by_role("article", name="Host beast")
    demo.post("/admin/load", model=COLD, node="beast")
    with demo.asking(COLD, 5, **{"x-request-id": "waits-for-a-load"}):
        bars = beast.locator(".memory")
        block = bars.nth(1).locator(".block").filter(has_text="Qwen3-14B")
        expect(block).to_have_class(re.compile("hatched"))
        expect(bars.nth(0)).not_to_contain_text("Qwen3-14B")  # the load names GPU 1
        assert block.bounding_box()["width"] > 0.45 * bars.nth(1).bounding_box()["width"]
        row = beast.get_by_role("row").filter(has_text=COLD)
        expect(row).to_contain_text("loading")
        expect(row).to_contain_text("loaded")
        expect(block).not_to_have_class(re.compile("hatched"))
    go(page, "Requests")
    page.get_by_role("region", name="Ended").get_by_role("link", name="waits-for-a-").click()
    expect(page.get_by_role("img", name=re.compile("^Phases: .*load [\\d.]+ s"))).to_be_visible()
    expect(page.locator(".lane").filter(has_text="load on beast")).to_contain_text("loaded")
    expect(page.locator(".story")).to_contain_text(f"load of {COLD} on beast: loaded after")
    demo.post("/admin/unload", model=COLD, node="beast")


def test_model_that_sleeps_is_hatched(demo, open_page):
    page = open_page()
    beast = page.get_by_role("article", name="Host beast")
    demo.post("/admin/unload", model=MIDDLE, node="beast")
    row = beast.get_by_role("row").filter(has_text=MIDDLE)
    expect(row).to_contain_text("asleep")
    expect(beast.locator(".block.hatched")).to_have_attribute("title", re.compile(f"^{MIDDLE}.* asleep"))
    demo.ask("helexa/balanced")
    expect(row).to_contain_text("loaded")
    expect(beast.locator(".block.hatched")).to_have_count(0)


def write_overview_image(demo, page):
    """With half a minute of traffic, so that the charts have lines."""
    until = time.monotonic() + 45
    while time.monotonic() < until:
        with demo.asking("helexa/large", 120), demo.asking("helexa/balanced", 90), demo.asking("helexa/small", 60):
            demo.ask("helexa/small", 20)
    with demo.asking("helexa/large", 400), demo.asking("helexa/small", 400):
        page.wait_for_timeout(3000)
        page.screenshot(path=IMAGES / "console-overview.png")
