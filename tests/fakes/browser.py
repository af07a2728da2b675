"""A demo and the steps that tests of the console take in a browser. The fixtures are in tests/browser/conftest.py."""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fakes.patience import SAFETY_NET_S

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

    def post(self, path: str, **body: str) -> dict[str, Any]:
        """A change by the admin API, as another operator makes it."""
        headers = {"content-type": "application/json", "authorization": f"Bearer {self.key}"}
        data = json.dumps(body).encode()
        request = urllib.request.Request(f"{self.admin}{path}", data, headers)  # noqa: S310 - the demo's own address
        with urllib.request.urlopen(request, timeout=SAFETY_NET_S) as response:  # noqa: S310 - as above
            return json.load(response)

    def create_key(self, name: str) -> str:
        """Make a key that may send requests; returns its secret."""
        return self.post("/admin/keys", name=name)["secret"]

    @contextmanager
    def asking(self, model: str, words: int, **headers: str):
        """Send a request while the block runs; yields a list that gets the answer. Waits for it at the end."""
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(self.ask(model, words, **headers)))
        thread.start()
        yield answers
        thread.join(SAFETY_NET_S)
        assert answers


def sign_in(page, key):
    page.fill("#key", key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("nav.pages")


def go(page, name):
    """Open a page by its link in the navigation."""
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(f"^{name}", re.IGNORECASE)).click()
    page.wait_for_selector(f"main[data-page={name.lower()}]")


def keep_screenshot(page, name):
    """For the person that looks at the run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
