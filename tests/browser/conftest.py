"""Chromium, driven by playwright, in front of a running `cortex demo`.

Screenshots of every page are kept in build/browser/ (git ignores it). `--write-docs` also writes those of the README
into docs/images/.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fakes.patience import SAFETY_NET_S
from fakes.process import running_cortex
from playwright.sync_api import sync_playwright

TOP = Path(__file__).parent.parent.parent
SCREENSHOTS = TOP / "build" / "browser"
SPEED = 4  # of the demo's models: fast, but slow enough to see a request run
PAGES = ["overview", "aliases", "requests", "usage", "playground", "log"]


@dataclass
class Demo:
    """A running demo."""

    api: str
    admin: str
    key: str
    folder: Path
    pid: int

    def ask(self, model: str, words: int = 5, **headers: str) -> str:
        """Send a streaming request, and return the answer as text, an error response included."""
        messages = [{"role": "user", "content": f"Write {words} words"}]
        body = json.dumps({"model": model, "stream": True, "messages": messages}).encode()
        request = urllib.request.Request(  # noqa: S310 - the demo's own address
            f"{self.api}/v1/chat/completions", body, {"content-type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(request, timeout=SAFETY_NET_S) as response:  # noqa: S310 - as above
                return response.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    @contextmanager
    def asking(self, model: str, words: int, **headers: str):
        """Send a request while the block runs; yields a list that gets the answer. Waits for it at the end."""
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(self.ask(model, words, **headers)))
        thread.start()
        yield answers
        thread.join(SAFETY_NET_S)
        assert answers


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
    """Opens browsers; at the end none may have violated the content security policy or raised an error."""
    complaints, contexts = [], []

    def open_one(*, width=1280, height=900, scheme="light", signed_in=True):
        context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
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
        context.close()
    assert complaints == []


def _is_complaint(message):
    """Errors, among them violations of the policy; not that an answer had an error status, which browsers log."""
    return message.type == "error" and not message.text.startswith("Failed to load resource")


def sign_in(page, key):
    page.fill("#key", key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("nav.pages")


def go(page, name):
    """Open a page by its link in the navigation."""
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(f"^{name}", re.IGNORECASE)).click()
    page.wait_for_selector(f"main[data-page={name.lower()}]")


def keep_screenshot(page, name):
    """For whoever looks at the run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
