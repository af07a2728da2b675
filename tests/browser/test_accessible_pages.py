"""Every page: by keyboard, in light and dark, on a phone, with a screen reader."""

from __future__ import annotations

import re
from functools import partial

import pytest
from fakes.browser import COLD, MIDDLE, PAGES, SMALL, TOP, choose_target, go, keep_screenshot, sign_in, wait_until
from playwright.sync_api import expect

AXE = TOP / "tests" / "browser" / "node_modules" / "axe-core" / "axe.min.js"


@pytest.mark.parametrize("name", PAGES)
def test_page_fits_and_is_accessible(demo, open_page, name):
    """In both schemes and widths: nothing is wider than the window, dark is dark, and axe finds no serious fault."""
    page = open_page()
    demo.ask("helexa/small")
    go(page, name)
    fill(page, name)
    faults = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for width in (1280, 360):
            page.set_viewport_size({"width": width, "height": 900})
            wait_until(partial(fits, page, width))  # charts follow a moment later
            red = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
            assert (red < 60) == (scheme == "dark")
            faults += axe(page, f"{scheme} {width}")
            keep_screenshot(page, f"{name}-{scheme}-{width}")
    assert faults == []


def fits(page, width):
    """Whether nothing is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth") <= width


def fill(page, name):
    """Wait until the page has what it shows, and open what it hides at first."""
    if name == "overview":
        page.locator(".u-wrap").first.wait_for()
        page.get_by_role("article", name="Host beast").wait_for()
    elif name == "aliases":
        choose_target(page, COLD)
        page.wait_for_selector(".plan-box")
    elif name == "requests":
        page.locator("section[aria-labelledby=ended-title] a").first.click()
        page.wait_for_selector(".waterfall")
    elif name == "usage":
        page.get_by_role("region", name="By key").get_by_role("row").nth(1).wait_for()
    elif name == "playground":
        page.get_by_text("Tools and image").click()
        page.get_by_role("button", name="Send").click()
        page.get_by_role("article").filter(has_text="done").wait_for()
    else:
        page.get_by_role("listitem").filter(has_text="neuron_up").first.wait_for()


def test_narrow_window_shows_where_it_is(open_page):
    """The navigation is wider than a phone: the open page's link is scrolled into view, also after a reload."""
    page = open_page(width=360)
    go(page, "Log")
    page.reload()
    page.wait_for_selector("main[data-page=log]")
    expect(page.get_by_role("navigation", name="Pages").get_by_role("link", name="Log")).to_be_in_viewport(ratio=0.9)


def test_sign_in_and_dialog_are_accessible(demo, open_page):
    page = open_page(signed_in=False)
    faults = axe(page, "sign-in")
    sign_in(page, demo.key)
    page.get_by_role("article", name="Host beast").get_by_role("button", name="Drain").click()
    assert faults + axe(page, "dialog") == []


def test_console_works_by_keyboard_alone(demo, open_page):
    """From signing in to a swap with its plan; Escape closes a dialog, and focus comes back."""
    page = open_page(signed_in=False)
    keys = page.keyboard
    expect(page.get_by_label("Key")).to_be_focused()
    keys.type(demo.key)
    keys.press("Enter")
    page.wait_for_selector("nav.pages")
    tab_to(page, "Aliases")
    keys.press("Enter")
    page.wait_for_selector("main[data-page=aliases]")
    tab_to(page, "helexa/small")
    keys.press("Enter")
    expect(page.locator(".alias-detail h2")).to_have_text("helexa/small")
    tab_to(page, "New target")
    keys.type(MIDDLE)
    keys.press("Tab")
    expect(page.locator(".plan-box")).to_contain_text(f"{MIDDLE} is loaded on beast")
    tab_to(page, "Move helexa/small")
    keys.press("Enter")
    expect(page.locator(".alias-detail table").first).to_contain_text(MIDDLE)
    tab_to(page, "Roll back…")
    keys.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    assert page.evaluate("document.activeElement.textContent") == "Roll back…"
    keys.press("Enter")
    tab_to(page, "Roll back")
    keys.press("Enter")
    expect(page.locator(".alias-detail table").first).to_contain_text(SMALL)


def tab_to(page, name):
    """Press Tab until the control with this name has the focus, and it shows that it has."""
    for _ in range(80):
        page.keyboard.press("Tab")
        found = page.evaluate(
            """() => {
                const one = document.activeElement;
                const names = [one.labels?.[0]?.textContent, one.getAttribute("aria-label"), one.textContent];
                return [...names, one.querySelector("strong")?.textContent, getComputedStyle(one).outlineStyle];
            }"""
        )
        if name in found[:4]:
            assert found[4] != "none", name
            return
    raise AssertionError(f"Tab does not reach {name}")


def axe(page, name):
    page.evaluate(AXE.read_text())
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (name, fault["id"], fault["impact"], fault["nodes"][0]["target"], fault["nodes"][0]["failureSummary"])
        for fault in result["violations"]
        if fault["impact"] in {"serious", "critical"}
    ]
