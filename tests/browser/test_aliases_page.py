"""The aliases: plans, swaps, rollouts, the timeline and a shadow."""

from __future__ import annotations

import re

from fakes.browser import (
    COLD,
    IMAGES,
    LARGE,
    MIDDLE,
    SMALL,
    choose_target,
    keep_screenshot,
    open_alias,
)
from playwright.sync_api import expect


def test_swap_shows_its_plan_before_the_button_works(demo, open_page, pytestconfig):
    """Then the alias moves once the new target is warm, and the timeline has it."""
    page = open_page()
    open_alias(page, "helexa/large")
    button = page.get_by_role("button", name="Move helexa/large")
    expect(button).to_be_disabled()
    choose_target(page, "nobody/has-it")
    expect(page.locator(".plan")).to_contain_text("nobody/has-it")
    expect(button).to_be_disabled()
    with demo.asking("helexa/large", 60):
        page.wait_for_timeout(300)
        choose_target(page, COLD)
        plan = page.locator(".plan-box")
        expect(plan).to_contain_text(f"load {COLD} (12.0 GiB) on beast GPU 1")
        expect(plan).to_contain_text("1 running request finishes on Qwen/Qwen3.6-27B")
        expect(plan.get_by_role("row", name="beast GPU 1")).to_contain_text("19.0")
        expect(page.locator("form.change .cli")).to_contain_text(f"cortex alias set helexa/large {COLD}")
        expect(button).to_be_enabled()
        keep_screenshot(page, "aliases-plan")
        if pytestconfig.getoption("--write-docs"):
            page.screenshot(path=IMAGES / "console-swap.png")
    button.click()
    expect(page.locator(".alias-detail table").first).to_contain_text(COLD)
    entry = page.locator(".timeline li").first
    expect(entry.locator("summary")).to_contain_text(COLD)
    expect(entry).to_contain_text("in force")
    peek = entry.locator(".peek")
    expect(peek).to_be_hidden()
    entry.locator("summary").hover()
    expect(peek.locator("ins")).to_contain_text(COLD)
    page.keyboard.press("Escape")
    expect(peek).to_be_hidden()
    page.mouse.move(0, 0)
    entry.locator("summary").hover()
    expect(peek).to_be_visible()
    page.mouse.move(0, 0)
    expect(peek).to_be_hidden()
    entry.locator("summary").focus()
    expect(peek.locator("del")).to_contain_text(LARGE)
    entry.locator("summary").click()
    expect(entry.locator("details ins")).to_contain_text(COLD)
    expect(entry).to_contain_text("cortex alias set helexa/large")
    roll_back(page, "helexa/large", LARGE)
    demo.post("/admin/unload", model=COLD, node="beast")
    refused_without_a_plan(page)
    dialog = begin_rollback(page)
    expect(dialog).to_contain_text(f"load {COLD} (12.0 GiB) on beast GPU 1")
    expect(dialog.get_by_role("row", name="beast GPU 1")).to_contain_text("19.0")
    expect(dialog.get_by_role("button", name="Roll back")).to_be_enabled()
    keep_screenshot(page, "aliases-rollback")


def begin_rollback(page):
    page.locator("form.change").get_by_role("button", name="Roll back").click()
    return page.get_by_role("dialog")


def roll_back(page, alias, model):
    dialog = begin_rollback(page)
    expect(dialog).to_contain_text(f"cortex alias rollback {alias}")
    expect(dialog.locator(".plan-box")).to_contain_text(f"→ {model}")
    dialog.get_by_role("button", name="Roll back").click()
    targets = page.locator(".alias-detail table").first
    expect(targets).to_contain_text(model)
    expect(targets.get_by_role("row")).to_have_count(2)


def refused_without_a_plan(page):
    """The button of a rollback does nothing before its plan is there."""
    page.route("**/admin/rollback/plan", lambda route: route.abort())
    dialog = begin_rollback(page)
    expect(dialog.locator(".plan")).to_contain_text("does not answer")
    expect(dialog.get_by_role("button", name="Roll back")).to_be_disabled()
    page.keyboard.press("Escape")
    page.unroute("**/admin/rollback/plan")


def test_rollback_that_was_planned_for_another_file_is_refused(demo, open_page):
    """Another operator changes the file between the plan and the button: the plan is made anew."""
    page = open_page()
    open_alias(page, "helexa/small")
    with demo.edited_models(f'"helexa/small" = "{SMALL}"', f'"helexa/small" = "{MIDDLE}"'):
        pass
    dialog = begin_rollback(page)
    button = dialog.get_by_role("button", name="Roll back")
    expect(button).to_be_enabled()
    with demo.edited_models('"helexa/balanced"', '# a comment\n"helexa/balanced"'):
        button.click()
        expect(page.locator(".toast.bad")).to_contain_text("another file is in force")
        expect(button).to_be_enabled()


def test_shadow_is_compared(demo, open_page):
    """Its figures are those of `cortex alias compare`, and follow."""
    page = open_page()
    with demo.edited_models(
        f'"helexa/small" = "{SMALL}"',
        f'"helexa/small" = {{ target = "{SMALL}", shadow = {{ model = "{MIDDLE}", percent = 100 }} }}',
    ):
        open_alias(page, "helexa/small")
        shadow = page.get_by_role("region", name="Shadow")
        expect(shadow).to_contain_text(MIDDLE)
        demo.ask("helexa/small", 30)
        expect(shadow).to_contain_text("1 compared")
        for figure in ("first token", "tokens per s", "completion tokens"):
            expect(shadow.get_by_role("row").filter(has_text=figure)).to_contain_text(re.compile(r"\d.*\d"))
        expect(shadow).to_contain_text("cortex alias compare helexa/small")
        keep_screenshot(page, "aliases-shadow")


def test_rollout_is_started_and_rolled_back(open_page):
    page = open_page()
    open_alias(page, "helexa/balanced")
    page.get_by_label("How").select_option("rollout")
    choose_target(page, SMALL)
    page.get_by_label("Each at least, s").fill("3600")
    page.keyboard.press("Tab")
    expect(page.locator("form.change .cli")).to_contain_text("--every 3600s")
    page.get_by_role("button", name="Start the rollout").click()
    rollout = page.get_by_role("region", name="Rollout")
    expect(rollout).to_contain_text("step 1 of 4: 5 %")
    expect(rollout.get_by_role("meter")).to_have_count(5)
    expect(page.locator(".alias-detail table").first).to_contain_text("95 %")
    keep_screenshot(page, "aliases-rollout")
    rollout.get_by_role("button", name="Roll back").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("cortex alias rollout helexa/balanced --abort")
    expect(dialog.locator(".plan-box")).to_contain_text(f"→ {MIDDLE}")
    dialog.get_by_role("button", name="Roll back").click()
    expect(rollout).to_be_hidden()
    expect(page.locator(".alias-detail table").first).to_contain_text("100 %")
