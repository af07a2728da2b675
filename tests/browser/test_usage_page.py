"""Usage: the chart, the file, and how near keys are to their limits."""

from __future__ import annotations

import csv
import re
import subprocess
import sys

from fakes.browser import SMALL, go, keep_screenshot
from fakes.process import environment
from playwright.sync_api import expect


def test_usage_has_a_chart_and_a_file(demo, open_page):
    """The file is what `cortex usage --csv` prints."""
    with demo.edited_models(f'id = "{SMALL}"', f'id = "{SMALL}"\ncost = {{ input = 100.0, output = 400.0 }}'):
        demo.ask("helexa/small", 20)
    page = open_page()
    go(page, "Usage")
    page.get_by_label("By", exact=True).select_option("alias")
    row = page.get_by_role("region", name="By alias").get_by_role("row").filter(has_text="helexa/small")
    expect(row).to_contain_text("$")
    expect(row).to_contain_text("Wh")
    chart = page.get_by_role("img", name=re.compile(r"^Tokens per day: \d{4}-\d\d-\d\d [\d,]+"))
    expect(chart).to_be_visible()
    assert chart.locator(".column > div").first.bounding_box()["height"] > 0
    expect(page.locator("main .cli").first).to_contain_text("cortex usage --by alias --since 7d")
    expect(page.locator("main .cli").last).to_contain_text("cortex usage --csv --by alias --since 7d")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    rows = values_of(download.value.path().read_text())
    assert rows[0][:4] == ["alias", "requests", "errors", "prompt_tokens"]
    assert "helexa/small" in [row[0] for row in rows]
    command = [sys.executable, "-m", "gateway.cli", "usage", "--csv", "--by", "alias", "--since", "7d"]
    done = subprocess.run(
        [*command, "--url", demo.admin, "--key", demo.key], check=True, capture_output=True, env=environment()
    )
    assert rows == values_of(done.stdout.decode())
    assert download.value.suggested_filename.startswith("cortex-usage-by-alias-")


def values_of(text):
    """The cells of a CSV file, numbers as numbers."""
    return [[float(cell) if cell[:1].isdigit() else cell for cell in row] for row in csv.reader(text.splitlines())]


def test_usage_shows_how_near_keys_are_to_their_limits(demo, open_page):
    """One has room left in its budget, the other none."""
    roomy = demo.create_key("roomy", budgets=["tokens 1000/day"], concurrency=3)
    spent = demo.create_key("spent", budgets=["tokens 12/day"])
    for secret in (roomy, spent):
        demo.ask("helexa/small", 10, authorization=f"Bearer {secret}")
    page = open_page()
    go(page, "Usage")
    limits = page.get_by_role("region", name="Limits")
    left = limits.get_by_role("meter", name="roomy: tokens per day")
    assert 0 < int(left.get_attribute("aria-valuenow")) < 20
    expect(limits.locator(".limit-of").filter(has_text="roomy")).to_contain_text("0 of 3")
    expect(limits.get_by_role("meter", name="spent: tokens per day")).to_have_attribute("aria-valuenow", "100")
    expect(limits.locator(".limit-of").filter(has_text="spent")).to_contain_text(re.compile("reached .* of 12"))
    keep_screenshot(page, "usage-limits")
