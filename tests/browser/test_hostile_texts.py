"""Names and texts that an attacker chose."""

from __future__ import annotations

from fakes.browser import PAGES, choose_target, go
from playwright.sync_api import expect

HOSTILE = "<img src=x onerror=window.pwned=1>"


def test_names_and_texts_are_never_html(demo, open_page):
    """Of aliases, models, keys, requests, problems and log lines: each appears as the text that it is."""
    models = demo.folder / "models.toml"
    before = models.read_text()
    page = open_page()
    try:
        hostile = before.replace("[aliases]", f"[aliases]\n'{HOSTILE}' = '{HOSTILE}model'")
        models.write_text(
            f"{hostile}\n[[models]]\nid = '{HOSTILE}model'\nharness = 'none'\nmin_device_vram_mb = 999999\n"
        )
        expect(page.locator(".problem-list")).to_contain_text(f"{HOSTILE}model")
        demo.ask(f"{HOSTILE}unknown")
        demo.ask("helexa/small", authorization=f"Bearer {demo.create_key(f'key {HOSTILE}')}")
        for name in PAGES:
            go(page, name)
            if name == "aliases":
                page.get_by_role("navigation", name="Aliases").get_by_role("link").filter(has_text=HOSTILE).click()
                expect(page.locator(".alias-detail h2")).to_have_text(HOSTILE)
                choose_target(page, HOSTILE)
                expect(page.locator("form.change .cli")).to_contain_text(HOSTILE)
            elif name == "requests":
                row = page.get_by_role("row").filter(has_text=f"{HOSTILE}unknown")
                row.get_by_role("link").click()
                expect(page.locator(".story")).to_contain_text("error")
                expect(page.get_by_role("region", name="Ended")).to_contain_text(f"key {HOSTILE}")
            elif name == "usage":
                expect(page.get_by_role("region", name="By key")).to_contain_text(f"key {HOSTILE}")
            elif name == "playground":
                page.get_by_label("Alias or model").select_option(HOSTILE)
                page.get_by_role("button", name="Send").click()
                expect(page.get_by_role("alert")).to_contain_text(HOSTILE)
            elif name == "log":
                expect(page.locator(".log")).to_contain_text(HOSTILE)
            assert page.evaluate("window.pwned") is None
            assert page.locator("img[src=x]").count() == 0
    finally:
        models.write_text(before)
    go(page, "Overview")
    expect(page.get_by_text("No problems")).to_be_visible()
