"""A demo and the steps that tests of the console take in a browser. The fixtures are in tests/browser/conftest.py."""

from __future__ import annotations

import json
import re
import shlex
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from fakes.patience import SAFETY_NET_S

from gateway.cli.main import main as cortex

TOP = Path(__file__).parent.parent.parent
SCREENSHOTS = TOP / "build" / "browser"
SPEED = 4  # of the demo's models: fast, but slow enough to see a request run
PAGES = ["overview", "aliases", "requests", "usage", "playground", "log"]
SMALL, MIDDLE, COLD, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "Qwen/Qwen3.6-27B"
IMAGES = TOP / "docs" / "images"


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
        fields = {"model": model, "stream": True, "stream_options": {"include_usage": True}, "messages": messages}
        body = json.dumps(fields).encode()
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

    def create_key(self, name: str, **limits: Any) -> str:
        """Make a key that may send requests; returns its secret."""
        return self.post("/admin/keys", name=name, **limits)["secret"]

    def generation(self) -> int:
        """The number of the catalogue in force."""
        with urllib.request.urlopen(f"{self.api}/health", timeout=SAFETY_NET_S) as response:  # noqa: S310 - as above
            return json.load(response)["catalogue"]["generation"]

    @contextmanager
    def edited_models(self, old: str, new: str):
        """Replace a text of models.toml while the block runs, as soon as the edit is in force."""
        path = self.folder / "models.toml"
        before = path.read_text()
        assert old in before
        self._write(path, before.replace(old, new))
        try:
            yield
        finally:
            self._write(path, before)

    def _write(self, path: Path, text: str) -> None:
        generation = self.generation()
        path.write_text(text)
        wait_until(lambda: self.generation() > generation)

    @contextmanager
    def failing(self, node: str, **fault: Any):
        """Inject a fault (neuron/simulated/faults.py) into a neuron of the demo while the block runs."""
        config = (self.folder / "cortex.toml").read_text()
        endpoint = re.search(rf'name = "{node}"\nendpoint = "(\S+)"', config)[1]
        self._send(f"{endpoint}/sim/faults", fault)
        try:
            yield
        finally:
            self._send(f"{endpoint}/sim/faults", None)

    def _send(self, url: str, body: dict[str, Any] | None) -> None:
        """POST the body, or DELETE what was posted."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        method = "DELETE" if body is None else "POST"
        request = urllib.request.Request(url, data, headers, method=method)  # noqa: S310 - the demo's own address
        urllib.request.urlopen(request, timeout=SAFETY_NET_S).close()  # noqa: S310 - as above

    @contextmanager
    def asking(self, model: str, words: int, **headers: str):
        """Send a request while the block runs; yields a list that gets the answer. Waits for it at the end."""
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(self.ask(model, words, **headers)))
        thread.start()
        yield answers
        thread.join(SAFETY_NET_S)
        assert answers


def wait_until(is_so: Callable[[], bool]) -> None:
    """Ask until it is so, at most as long as the safety net allows."""
    end = time.monotonic() + SAFETY_NET_S
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.05)


LINES = """
window.cortexLines = new Set();
new MutationObserver(() => {
  for (const code of document.querySelectorAll(".cli code")) cortexLines.add(code.textContent);
}).observe(document, { subtree: true, childList: true, characterData: true });
"""
"""A script that collects the `cortex …` lines that a page shows."""


def refused_lines(page) -> list[str]:
    """The lines that the page has shown and that `cortex` does not take."""
    return [line for line in page.evaluate("[...(window.cortexLines ?? [])]") if not is_command(line)]


def is_command(line: str) -> bool:
    """Whether `cortex` has this command and these options; nothing is run."""
    program, *words = shlex.split(line)
    command: click.Command = cortex
    context, name = click.Context(cortex), program
    try:
        while isinstance(command, click.Group):
            name, command, words = command.resolve_command(context, words)
        command.make_context(name, words)
    except click.UsageError:
        return False
    return program == "cortex"


def sign_in(page, key):
    page.fill("#key", key)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_selector("nav.pages")


def go(page, name):
    """Open a page by its link in the navigation."""
    page.get_by_role("navigation", name="Pages").get_by_role("link", name=re.compile(f"^{name}", re.IGNORECASE)).click()
    page.wait_for_selector(f"main[data-page={name.lower()}]")


def open_alias(page, name):
    """Open an alias on the page of aliases."""
    go(page, "Aliases")
    page.get_by_role("navigation", name="Aliases").get_by_role("link").filter(has_text=name).click()
    page.locator(".alias-detail h2", has_text=name).wait_for()


def choose_target(page, model):
    """Enter a new target of an alias; the page plans the change."""
    page.get_by_label("New target").fill(model)
    page.keyboard.press("Tab")


def keep_screenshot(page, name):
    """For the person that looks at the run."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)
