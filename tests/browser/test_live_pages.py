"""Pages that stay open: stale, reconnected, resumed, and with a flat heap."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from contextlib import contextmanager, suppress

from fakes.browser import go, keep_screenshot, sign_in
from fakes.console_hour import BATCH_TICKS, BATCHES, demo_of_an_hour
from fakes.patience import SAFETY_NET_S
from fakes.process import a_port_of_our_own, running_cortex
from playwright.sync_api import expect


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


@contextmanager
def gateway(folder, ports):
    """A gateway without neurons, whose page can be open while it restarts."""
    config = folder / "cortex.toml"
    api, admin = ports
    config.write_text(
        f"[gateway]\nlisten = '127.0.0.1:{api}'\nmetrics_listen = '127.0.0.1:{admin}'\n[admin]\ntoken = 'secret'\n"
    )
    with running_cortex("serve", "-c", config, cwd=folder) as process:
        process.log_line("listening")
        yield process


def test_page_comes_back_after_a_restart_of_the_gateway(chromium, tmp_path):
    """It says that it is stale meanwhile. Sessions end with the gateway, so it asks for the key again."""
    ports = a_port_of_our_own(), a_port_of_our_own()
    page = chromium.new_page()
    page.set_default_timeout(SAFETY_NET_S * 1000)
    with gateway(tmp_path, ports):
        page.goto(f"http://127.0.0.1:{ports[1]}/#/log")
        sign_in(page, "secret")
        expect(page.locator(".connection")).to_contain_text("live")
    expect(page.locator(".banner")).to_contain_text("has sent nothing since")
    with gateway(tmp_path, ports):
        expect(page.get_by_role("alert")).to_contain_text("the gateway was restarted")
        sign_in(page, "secret")
        expect(page.locator(".connection")).to_contain_text("live")
        expect(page.locator("main")).to_have_attribute("data-page", "log")
        expect(page.locator(".banner")).to_have_count(0)
    page.close()


class Wire:
    """Relays connections to a port, keeps what passes, and can break all of them.

    Attributes:
        port: Where it listens.
        passed: What went to and fro, in the order of the connections.
    """

    def __init__(self, target):
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets = []
        self.port = self._listener.getsockname()[1]
        self.passed = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
                self._sockets += [client, server]
                self.passed.append(bytearray())
                for one, other in ((client, server), (server, client)):
                    threading.Thread(target=self._relay, args=(one, other, self.passed[-1]), daemon=True).start()

    @staticmethod
    def _relay(source, sink, passed):
        with suppress(OSError):
            while data := source.recv(65536):
                passed += data
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def cut(self):
        """Break every connection."""
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self):
        """Break every connection, and accept no more."""
        self._listener.close()
        self.cut()
        for each in self._sockets:
            each.close()


def test_page_resumes_behind_the_last_event_that_it_has(demo, chromium):
    """The only page: its connection breaks, the browser sends Last-Event-ID, and gets what it missed only."""
    wire = Wire(int(demo.admin.rpartition(":")[2]))
    page = chromium.new_page()
    page.set_default_timeout(SAFETY_NET_S * 1000)
    page.goto(f"http://127.0.0.1:{wire.port}")
    sign_in(page, demo.key)
    expect(page.locator(".connection")).to_contain_text("live")
    expect(page.get_by_role("article", name="Host beast")).to_be_visible()
    count = len(wire.passed)
    wire.cut()
    with page.expect_response(re.compile("/admin/events$")):
        pass
    demo.post("/admin/nodes/quadbrat/drain")
    expect(page.locator(".problem-list")).to_contain_text("quadbrat")
    demo.post("/admin/nodes/quadbrat/undrain")
    expect(page.get_by_text("No problems")).to_be_visible()
    expect(page.locator(".connection")).to_contain_text("live")
    page.close()
    wire.close()
    [events] = [each for each in wire.passed[count:] if b"GET /admin/events" in each]
    assert re.search(rb"\r\nlast-event-id: [0-9a-f]+-\d+\r\n", events, re.IGNORECASE)
    assert b"event: request" in events
    assert b"event: resync" not in events


def test_hidden_page_leaves_its_connection_to_other_tabs(demo, open_page):
    """A browser has six connections to a host: without this, the seventh tab would not open."""
    page = open_page()
    page.clock.install()
    page.reload()
    expect(page.locator(".connection")).to_contain_text("live")
    show(page, "hidden")
    page.clock.fast_forward(20_000)
    expect(page.locator(".connection")).to_contain_text("connecting")
    demo.post("/admin/nodes/quadbrat/drain")
    show(page, "visible")
    expect(page.locator(".problem-list")).to_contain_text("quadbrat")
    expect(page.locator(".connection")).to_contain_text("live")
    demo.post("/admin/nodes/quadbrat/undrain")
    expect(page.get_by_text("No problems")).to_be_visible()


def show(page, visibility):
    """What a browser tells a page whose tab is left, or opened again."""
    page.evaluate(
        """visibility => {
          Object.defineProperty(document, "visibilityState", { value: visibility, configurable: true });
          document.dispatchEvent(new Event("visibilitychange"));
        }""",
        visibility,
    )


COUNT_TICKS = """
window.ticks = 0;
const Source = EventSource;
window.EventSource = class extends Source {
  constructor(...all) { super(...all); this.addEventListener("request", () => (window.ticks += 1)); }
};
"""
TOLERANCE_BYTES = (
    1_000_000  # after the first batch, which fills what is bounded: 60 bytes of each request would be more
)
NODES_OF_A_TABLE, LISTENERS_OF_A_TABLE = 4000, 300  # of the Requests page, which each batch opens and leaves


def test_heap_is_flat_over_the_events_of_an_hour(chromium, tmp_path):
    """In seconds. tests/e2e/test_console_hour.py has the same of the gateway; `scripts/soak` takes a real hour."""
    with demo_of_an_hour(tmp_path) as demo:
        page = chromium.new_page()
        page.set_default_timeout(SAFETY_NET_S * 1000)
        page.add_init_script(COUNT_TICKS)
        page.goto(demo.admin)
        sign_in(page, demo.key)
        devtools = page.context.new_cdp_session(page)
        devtools.send("Performance.enable")
        sizes = []
        for number in range(1, BATCHES + 1):
            page.wait_for_selector("article.host")
            demo.next_batch()
            while page.evaluate("ticks") < number * BATCH_TICKS:
                page.wait_for_timeout(200)
            for name in ("Requests", "Log", "Overview"):  # nor does a page that was left keep anything
                go(page, name)
            sizes.append(size_of(devtools))
        page.close()
    heaps, nodes, listeners = zip(*sizes, strict=True)
    assert heaps[-1] - heaps[0] < TOLERANCE_BYTES, heaps
    assert nodes[-1] - nodes[0] < NODES_OF_A_TABLE, nodes
    assert listeners[-1] - listeners[0] < LISTENERS_OF_A_TABLE, listeners


def size_of(devtools):
    """Bytes of the heap, DOM nodes and event listeners, after a garbage collection."""
    devtools.send("HeapProfiler.collectGarbage")
    metrics = {each["name"]: each["value"] for each in devtools.send("Performance.getMetrics")["metrics"]}
    return metrics["JSHeapUsedSize"], metrics["Nodes"], metrics["JSEventListeners"]
