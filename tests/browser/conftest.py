"""Chromium, driven by playwright, in front of a running `cortex demo`.

Screenshots of every page are kept in build/browser/ (git ignores it). `--write-docs` also writes those of the README
into docs/images/.
"""

from __future__ import annotations

import re

import pytest
from fakes.browser import LINES, SPEED, Demo, refused_lines, sign_in
from fakes.patience import SAFETY_NET_S
from fakes.process import running_cortex
from playwright.sync_api import expect, sync_playwright

expect.set_options(timeout=SAFETY_NET_S * 1000)


@pytest.fixture(scope="session")
def demo(tmp_path_factory):
    """One demo for all tests of a worker; tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("demo")
    with running_cortex("demo", "--port", 0, "--dir", folder, "--speed", SPEED) as process:
        text = process.read_until("Ctrl-C")
        api = re.search(r"cortex demo: (http://\S+)", text)[1]
        admin, key = re.search(r"in a browser: (http://\S+)/ \(key: (\S+)\)", text).groups()
        yield Demo(api, admin, key, folder, process.popen.pid)


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(demo, chromium):
    """Opens browsers; at the end none may have violated the content security policy, raised an error, or shown a
    `cortex …` line that `cortex` does not take.
    """
    complaints, contexts = [], []

    def open_one(*, width=1280, height=900, scheme="light", signed_in=True):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        context.add_init_script(LINES)
        page = context.new_page()
        page.set_default_timeout(SAFETY_NET_S * 1000)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: _is_complaint(message) and complaints.append(message.text))
        page.on("dialog", lambda dialog: complaints.append(f"a dialog: {dialog.message}"))
        page.goto(demo.admin)
        if signed_in:
            sign_in(page, demo.key)
        return page

    yield open_one
    for context in contexts:
        complaints += [f"not a command: {line}" for page in context.pages for line in refused_lines(page)]
        context.close()
    assert complaints == []


def _is_complaint(message):
    """Errors, among them violations of the policy; not that an answer had an error status, which browsers log."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")
