"""Pages that stay open: stale, reconnected, resumed, and with a flat heap."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from contextlib import contextmanager, suppress

from fakes.browser import go, keep_screenshot, sign_in
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


def test_page_resumes_behind_the_last_event_that_it_has(demo, open_page, chromium):
    """A broken connection: the browser sends Last-Event-ID, and gets what it missed instead of everything."""
    open_page()  # keeps the feed running
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
