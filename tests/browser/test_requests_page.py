"""The requests: live and ended, as waterfalls, cancelled, and with captured texts."""

from __future__ import annotations

import re

from fakes.browser import MIDDLE, PAGES, SMALL, go, keep_screenshot, wait_until
from playwright.sync_api import expect


def test_running_request_is_found_and_cancelled(demo, open_page):
    page = open_page()
    go(page, "Requests")
    with demo.asking("helexa/large", 4000, **{"x-request-id": "to-be-cancelled"}) as answers:
        running = page.get_by_role("region", name="Running")
        row = running.get_by_role("row").filter(has_text="to-be-cancel")
        expect(row).to_contain_text("running")
        page.get_by_role("region", name="Filters").get_by_label("Alias").select_option("helexa/large")
        row.get_by_role("link").click()
        detail = page.get_by_role("region", name="Request", exact=True)
        expect(detail.get_by_role("img", name=re.compile("^Phases: "))).to_be_visible()
        keep_screenshot(page, "requests")
        row.get_by_role("button", name="Cancel").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("cortex requests --cancel to-be-cancelled")
        dialog.get_by_role("button", name="Cancel the request").click()
        expect(row).to_have_count(0)
    assert "cancelled by an operator" in answers[0]
    expect(detail).to_contain_text("service_unavailable: cancelled by an operator")
    page.get_by_label("Outcome").select_option("error")
    expect(page.get_by_role("region", name="Ended").get_by_role("row").filter(has_text="to-be-cancel")).to_be_visible()


def test_hedge_and_its_cancelled_loser_are_side_by_side(demo, open_page):
    page = open_page()
    go(page, "Requests")
    ended = page.get_by_role("region", name="Ended")
    hedged = ended.get_by_role("row").filter(has_text="hedge won")
    alias = f'"helexa/small" = {{ target = "{SMALL}", hedge = {{ after = 0.2, budget_percent = 100 }} }}'
    with demo.edited_models(f'"helexa/small" = "{SMALL}"', alias), demo.failing("benjy", fault="hang"):
        wait_until(lambda: demo.ask("helexa/small", 8) and hedged.count())  # some go to quadbrat at first
    hedged.first.get_by_role("link").click()
    lost = page.locator(".lane").filter(has_text="attempt benjy")
    won = page.locator(".lane").filter(has_text="hedge quadbrat")
    expect(lost).to_contain_text(re.compile("lost|cancelled"))
    expect(lost.locator(".lane-bar")).to_have_css("background-image", re.compile("gradient"))
    expect(won).to_contain_text("answered")
    one, other = (lane.locator(".lane-bar").bounding_box() for lane in (lost, won))
    assert one["x"] < other["x"] < one["x"] + one["width"], "the hedge begins while the first attempt runs"
    keep_screenshot(page, "requests-hedge")


def test_request_in_the_queue_is_found_by_its_key(demo, open_page):
    """It shows its place in the queue, and afterwards how long it waited."""
    secret = demo.create_key("queuer")
    page = open_page()
    go(page, "Requests")
    filters = page.get_by_role("region", name="Filters")
    limited = (f'id = "{MIDDLE}"', f'id = "{MIDDLE}"\nmax_concurrent = 1')
    queued = {"x-request-id": "in-the-queue", "authorization": f"Bearer {secret}"}
    running = page.get_by_role("region", name="Running")
    with demo.edited_models(*limited), demo.asking("helexa/balanced", 600, **{"x-request-id": "in-the-way"}):
        expect(running).to_contain_text("in-the-way")
        with demo.asking("helexa/balanced", 5, **queued):
            expect(running.get_by_role("row").filter(has_text="in-the-queue")).to_contain_text("queued, number 1")
            filters.get_by_label("Key").select_option("queuer")
            expect(running).not_to_contain_text("in-the-way")
    row = page.get_by_role("region", name="Ended").get_by_role("row").filter(has_text="in-the-queue")
    row.get_by_role("link").click()
    expect(page.get_by_role("img", name=re.compile("^Phases: .*queue [\\d.]+"))).to_be_visible()
    expect(page.get_by_role("region", name="Ended").get_by_role("row")).to_have_count(2)  # with the head
    filters.get_by_label("Node").select_option("beast")
    filters.get_by_label("Search").fill("in-the-queue")
    expect(row).to_be_visible()
    filters.get_by_label("Search").fill("nothing has this")
    expect(row).to_have_count(0)


def test_every_page_says_that_texts_are_captured(demo, open_page):
    """In red, until they are erased."""
    page = open_page()
    go(page, "Requests")
    region = page.get_by_role("region", name="Captured texts")
    region.get_by_label("Alias").select_option("helexa/small")
    region.get_by_label("Redact").uncheck()
    region.get_by_role("button", name="Capture texts").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("cortex capture --alias helexa/small --for 600s")
    dialog.get_by_role("button", name="Capture texts").click()
    banner = page.locator(".banner.capture")
    expect(banner).to_contain_text("Texts are being captured")
    colour = banner.evaluate("element => getComputedStyle(element).backgroundColor")
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    assert red > 150 > 2 * max(green, blue), colour
    demo.ask("helexa/small", 7)
    expect(region).to_contain_text("Write 7 words")
    for name in PAGES:
        go(page, name)
        expect(banner).to_be_visible()
    keep_screenshot(page, "capture")
    go(page, "Requests")
    region.get_by_role("button", name="Stop and erase").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop and erase").click()
    expect(banner).to_have_count(0)
    expect(region).not_to_contain_text("Write 7 words")
