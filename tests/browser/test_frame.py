"""What all pages share: signing in, the theme, and what a browser refuses to other sites."""

from __future__ import annotations

import re

from fakes.browser import SMALL, go, keep_screenshot, sign_in
from playwright.sync_api import expect


def test_wrong_key_does_not_sign_in_and_the_right_one_does(demo, open_page):
    """And signing out shows the sign-in again, also after a reload."""
    page = open_page(signed_in=False)
    page.fill("#key", "wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert")).to_contain_text("not valid")
    sign_in(page, demo.key)
    expect(page.get_by_role("heading", name="Hosts")).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_label("Key")).to_be_focused()
    page.reload()
    expect(page.get_by_label("Key")).to_be_focused()


def test_page_begins_at_its_top(open_page):
    """Moving the focus into the page must not scroll its beginning behind the header."""
    page = open_page()
    for name in ("Aliases", "Overview"):
        go(page, name)
        expect(page.locator("main")).to_be_focused()
        assert page.evaluate("scrollY") == 0


def test_theme_is_chosen_and_kept(open_page):
    page = open_page()
    for _ in range(2):  # system, light, dark
        page.get_by_role("button", name=re.compile("theme; change")).click()
    page.reload()
    page.wait_for_selector("nav.pages")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_console_cannot_be_framed(demo, open_page):
    """Clickjacking: the browser shows nothing of it in another site's frame."""
    page = open_page()
    page.context.route(
        "http://evil.example/",
        lambda route: route.fulfill(body=f"<iframe src='{demo.admin}'></iframe>", content_type="text/html"),
    )
    other = page.context.new_page()
    other.goto("http://evil.example/")
    other.wait_for_timeout(500)
    assert [frame for frame in other.frames if frame.locator("#app").count()] == []


def test_public_port_has_a_page_for_people(demo, open_page):
    """What this is, the models, three lines for a client, and the way to the console."""
    page = open_page(signed_in=False)
    page.goto(demo.api)
    expect(page.get_by_role("listitem").filter(has_text="helexa/small")).to_contain_text(SMALL)
    expect(page.locator("pre")).to_contain_text(f'base_url="{demo.api}/v1"')
    assert page.locator("pre").inner_text().count("\n") == 2
    keep_screenshot(page, "public")
    page.get_by_role("link", name="console").click()
    expect(page.get_by_label("Key")).to_be_visible()
