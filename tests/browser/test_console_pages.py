"""The console as an operator uses it, in a real browser."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest
from fakes.browser import PAGES, TOP, go, keep_screenshot, sign_in
from fakes.patience import SAFETY_NET_S
from playwright.sync_api import expect

SMALL, MIDDLE, COLD = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B"
IMAGES = TOP / "docs" / "images"
AXE = TOP / "tests" / "browser" / "node_modules" / "axe-core" / "axe.min.js"

expect.set_options(timeout=SAFETY_NET_S * 1000)


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


def test_model_that_loads_is_hatched(demo, open_page):
    """In the memory that it will take; not once it is loaded."""
    page = open_page()
    benjy = page.get_by_role("article", name="Host benjy")
    demo.post("/admin/load", model=COLD, node="benjy")
    block = benjy.locator(".block").filter(has_text="Qwen3-14B")
    expect(block).to_have_class(re.compile("hatched"))
    assert block.bounding_box()["width"] > 0.6 * benjy.locator(".memory").bounding_box()["width"]
    row = benjy.get_by_role("row").filter(has_text=COLD)
    expect(row).to_contain_text("loading")
    expect(row).to_contain_text("loaded")
    expect(block).not_to_have_class(re.compile("hatched"))
    demo.post("/admin/unload", model=COLD, node="benjy")
    expect(row).to_have_count(0)


def write_overview_image(demo, page):
    """With half a minute of traffic, so that the charts have lines."""
    until = time.monotonic() + 45
    while time.monotonic() < until:
        with demo.asking("helexa/large", 120), demo.asking("helexa/balanced", 90), demo.asking("helexa/small", 60):
            demo.ask("helexa/small", 20)
    with demo.asking("helexa/large", 400), demo.asking("helexa/small", 400):
        page.wait_for_timeout(3000)
        page.screenshot(path=IMAGES / "console-overview.png")


def open_alias(page, name):
    go(page, "Aliases")
    page.get_by_role("navigation", name="Aliases").get_by_role("link").filter(has_text=name).click()
    expect(page.locator(".alias-detail h2")).to_have_text(name)


def choose_target(page, model):
    page.get_by_label("New target").fill(model)
    page.keyboard.press("Tab")


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
    entry.locator("summary").click()
    expect(entry.locator("ins")).to_contain_text(COLD)
    expect(entry).to_contain_text("cortex alias set helexa/large")
    roll_back(page, "helexa/large", "Qwen/Qwen3.6-27B")


def roll_back(page, alias, model):
    page.locator("form.change").get_by_role("button", name="Roll back").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text(f"cortex alias rollback {alias}")
    dialog.get_by_role("button", name="Roll back").click()
    expect(page.locator(".alias-detail table").first).to_contain_text(model)
    expect(page.locator(".alias-detail table").first.get_by_role("row")).to_have_count(2)


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
    page.get_by_role("dialog").get_by_role("button", name="Roll back").click()
    expect(rollout).to_be_hidden()
    expect(page.locator(".alias-detail table").first).to_contain_text("100 %")


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


def test_usage_has_a_chart_and_a_file(demo, open_page):
    """The file is what the table shows."""
    demo.ask("helexa/small", 20)
    page = open_page()
    go(page, "Usage")
    page.get_by_label("By", exact=True).select_option("alias")
    row = page.get_by_role("region", name="By alias").get_by_role("row").filter(has_text="helexa/small")
    expect(row).to_be_visible()
    chart = page.get_by_role("img", name=re.compile(r"^Tokens per day: \d{4}-\d\d-\d\d [\d,]+"))
    expect(chart).to_be_visible()
    assert chart.locator(".column > div").first.bounding_box()["height"] > 0
    expect(page.locator("main .cli").last).to_contain_text("cortex usage --by alias --since 7d")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    lines = download.value.path().read_text().splitlines()
    assert lines[0].startswith("alias,requests,errors,prompt_tokens,completion_tokens")
    assert any(line.startswith("helexa/small,") for line in lines)
    assert download.value.suggested_filename.startswith("cortex-usage-by-alias-")


def test_playground_asks_two_aliases(open_page):
    page = open_page()
    go(page, "Playground")
    page.get_by_label("Alias or model").select_option("helexa/small")
    page.get_by_label("Beside it").select_option("helexa/balanced")
    page.get_by_label("Prompt").fill("What is the capital of Georgia?")
    page.get_by_role("button", name="Send").click()
    for alias, model in (("helexa/small", SMALL), ("helexa/balanced", MIDDLE)):
        answer = page.get_by_role("article", name=f"Answer of {alias}")
        expect(answer).to_contain_text("Tbilisi")
        expect(answer).to_contain_text("done")
        expect(answer).to_contain_text(model)
        expect(answer).to_contain_text("tokens/s")
    page.get_by_role("button", name="Python").click()
    expect(page.locator("pre.code").last).to_contain_text('model="helexa/small"')
    keep_screenshot(page, "playground")


@pytest.mark.parametrize(("scheme", "width"), [("light", 360), ("dark", 360), ("dark", 1280)])
def test_every_page_fits_in_both_schemes(open_page, scheme, width):
    """Nothing is wider than the window, and dark is dark."""
    page = open_page(width=width, scheme=scheme)
    for name in PAGES:
        go(page, name)
        page.wait_for_timeout(1200)  # for a tick, which fills the page
        assert page.evaluate("document.documentElement.scrollWidth") <= width, name
        red = int(re.search(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[0])
        assert (red < 60) == (scheme == "dark")
        keep_screenshot(page, f"{name}-{scheme}-{width}")


def test_theme_is_chosen_and_kept(open_page):
    page = open_page()
    for _ in range(2):  # system, light, dark
        page.get_by_role("button", name=re.compile("theme; change")).click()
    page.reload()
    page.wait_for_selector("nav.pages")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


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


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_fault(demo, open_page, scheme):
    """On any page, the sign-in and a dialog included."""
    page = open_page(scheme=scheme, signed_in=False)
    faults = axe(page, "sign-in")
    sign_in(page, demo.key)
    for name in PAGES:
        go(page, name)
        page.wait_for_timeout(1200)
        if name == "aliases":
            choose_target(page, COLD)
            page.wait_for_selector(".plan-box")
        if name == "requests":
            demo.ask("helexa/small")
            page.locator("section[aria-labelledby=ended-title] a").first.click()
            page.wait_for_selector(".waterfall")
        faults += axe(page, name)
    go(page, "Overview")
    page.get_by_role("article", name="Host beast").get_by_role("button", name="Drain").click()
    faults += axe(page, "dialog")
    assert faults == []


def axe(page, name):
    page.evaluate(AXE.read_text())
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    return [
        (name, fault["id"], fault["impact"], fault["nodes"][0]["target"], fault["nodes"][0]["failureSummary"])
        for fault in result["violations"]
        if fault["impact"] in {"serious", "critical"}
    ]


def test_page_says_that_it_is_stale_and_recovers(demo, open_page):
    """A gateway that hangs sends nothing, and no connection breaks."""
    page = open_page()
    expect(page.locator(".connection")).to_contain_text("live")
    os.kill(demo.pid, signal.SIGSTOP)
    try:
        expect(page.locator(".banner")).to_contain_text("has sent nothing since")
        keep_screenshot(page, "stale")
    finally:
        os.kill(demo.pid, signal.SIGCONT)
    expect(page.locator(".banner")).to_have_count(0)
    expect(page.locator(".connection")).to_contain_text("live")


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


FAKE_EVENTS = """
window.EventSource = class {
  constructor() { window.feed = this; this.handlers = {}; this.readyState = 1; }
  addEventListener(kind, handler) { (this.handlers[kind] ??= []).push(handler); }
  close() {}
  emit(kind, data) { for (const handler of this.handlers[kind] ?? []) handler({ data: JSON.stringify(data) }); }
};
window.EventSource.CLOSED = 2;
"""
REPLAY = """async ([from, to]) => {
  const model = { id: "m", status: "loaded", devices: [0], servable: true, leases: 1, progress: null, reason: null };
  const readings = { vram_total_mb: 4096, vram_used_mb: 2000, utilization_pct: 1, temp_c: 2, power_w: 3 };
  const device = { index: 0, name: "GPU", ...readings };
  const node = { name: "n", healthy: true, drain: "open", failure: null, devices: [device] };
  const ended = { alias: "a", model: "m", node: "n", state: "running", elapsed_s: 1, outcome: "ok", total_ms: 10,
    completion_tokens: 5, key: { id: "k", name: "olga" } };
  const figures = { errors_per_s: 0, queued: 0, first_token_p50_ms: 5, first_token_p95_ms: 9, cache_hit_ratio: 0.5 };
  for (let tick = from; tick < to; tick++) {
    const at = 1.8e9 + tick;
    const request = (number) => ({ ...ended, request_id: number.toString(16).padStart(32, "0"), received_at: at });
    const changing = { requests_per_s: tick % 7, tokens_per_s: tick, watts: tick % 300, utilization_pct: tick % 100 };
    const rates = { ...figures, ...changing, at };
    const models = [{ ...model, vram_used_mb: tick % 2000 }];
    feed.emit("fleet", { nodes: [{ ...node, leases: tick % 9, models }], loads: [], queue: [], swaps: [] });
    const line = { number: tick, level: "info", event: "request", timestamp: "2027-01-01T00:00:00Z" };
    feed.emit("log", { events: [line] });
    const news = Array.from({ length: 10 }, (_, each) => request(tick * 10 + each));
    feed.emit("request", { live: [request(-1)], live_total: 1, ended: news, ended_total: tick, rates, point: rates });
    if (tick % 10 === 0) await new Promise((done) => setTimeout(done));
  }
}"""


def test_long_stay_leaves_the_heap_flat(open_page):
    """On the pages that draw the most: once what a page keeps is full (points after 360), nothing is added."""
    page = open_page()
    page.context.add_init_script(FAKE_EVENTS)
    page.reload()
    page.wait_for_selector(".figures")
    devtools = page.context.new_cdp_session(page)
    sizes = []
    for first_tick, last_tick, name in ((0, 400, "overview"), (400, 450, "requests"), (450, 900, "overview")):
        go(page, name)
        page.evaluate(REPLAY, [first_tick, last_tick])
        devtools.send("HeapProfiler.collectGarbage")
        sizes.append(devtools.send("Runtime.getHeapUsage")["usedSize"])
    assert sizes[2] - sizes[0] < 1_500_000, sizes
