"""The log: filtered by level and text, following."""

from __future__ import annotations

from fakes.browser import go, keep_screenshot
from playwright.sync_api import expect


def test_log_is_filtered(demo, open_page):
    """It has events of the level info, which the demo leaves out of its log on stderr."""
    page = open_page()
    go(page, "Log")
    log = page.get_by_role("region", name="Events of the log")
    line = log.get_by_role("listitem")
    expect(line.filter(has_text="neuron_up").first).to_contain_text("info")
    demo.ask("helexa/small")  # only the level info logs requests
    expect(line.get_by_text("request", exact=True)).to_have_count(0)
    demo.post("/admin/nodes/quadbrat/drain")
    page.get_by_label("At least").select_option("warning")
    expect(line.filter(has_text="node_drained").first).to_contain_text("warning")
    demo.post("/admin/nodes/quadbrat/undrain")
    expect(line.filter(has_text="neuron_up")).to_have_count(0)
    page.get_by_label("Search").fill("NOBODY-has-logged-this")
    expect(log).to_contain_text("No event matches.")
    page.get_by_label("Search").fill("Node_Drained")
    expect(line.filter(has_text="node_drained").first).to_be_visible()
    keep_screenshot(page, "log")


def test_log_follows_until_it_is_told_not_to(demo, open_page):
    """Then what the operator reads stays where it is."""
    page = open_page(height=300)
    go(page, "Log")
    log = page.get_by_role("region", name="Events of the log")
    page.get_by_label("At least").select_option("debug")

    def happen(number):
        with demo.edited_models('"helexa/balanced"', f'# edit {number}\n"helexa/balanced"'):
            pass
        expect(applied).to_have_count(number)

    applied = log.get_by_role("listitem").filter(has_text="catalogue_applied")
    before = applied.count()
    happen(before + 2)
    end = "element => element.scrollHeight - element.clientHeight - element.scrollTop"
    assert log.evaluate("element => element.scrollHeight > element.clientHeight")
    assert log.evaluate(end) < 2
    page.get_by_label("Follow").uncheck()
    log.evaluate("element => { element.scrollTop = 10; }")
    happen(before + 4)
    assert log.evaluate("element => element.scrollTop") == 10
    page.get_by_label("Follow").check()
    assert log.evaluate(end) < 2
