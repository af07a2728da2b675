"""Log lines go out without any request waiting for them or failing because of them."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

import httpx
import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S
from fakes.process import a_port_of_our_own, environment
from fakes.running import PROBE, SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import UNSET

from gateway.config.settings import LogSettings
from gateway.telemetry import log
from gateway.telemetry.log import KEPT_BYTES, LogWriter, _encode, _flatten_values
from gateway.telemetry.recent_log import RecentLog
from gateway.telemetry.request_log import RequestEvent
from neuron.simulated.fleet import neuron


@pytest.fixture
def pipe():
    """Both ends of a pipe; those that the test leaves open are closed at the end."""
    ends = list(os.pipe())
    yield ends
    for end in ends:
        with suppress(OSError):  # a test may have done it
            os.close(end)


def read_all(end):
    os.set_blocking(end, False)
    data = b""
    try:
        while piece := os.read(end, 1 << 20):
            data += piece
    except BlockingIOError:
        pass
    return data


def test_lines_are_written_at_once(pipe):
    """Complete, in order, also those longer than one write."""
    lines = LogWriter(pipe[1])
    lines.write(b"one\n")
    lines.write(b"x" * 20_000 + b"\n")

    assert read_all(pipe[0]) == b"one\n" + b"x" * 20_000 + b"\n"


async def test_lines_of_requests_are_written_together(pipe, autojump_clock, monkeypatch):
    """In the order in which they came. A warning takes all that wait with it, and so does the end."""
    lines = LogWriter(pipe[1])
    monkeypatch.setattr(log, "_writers", [lines])
    async with trio.open_nursery() as nursery:
        await nursery.start(log.write_in_batches)
        for number in range(100):
            lines.write(b"%0100d\n" % number, urgent=False)
        assert read_all(pipe[0]) == b""
        await trio.sleep(log.BATCH_S * 1.5)
        assert read_all(pipe[0]) == b"".join(b"%0100d\n" % number for number in range(100))
        lines.write(b"waits\n", urgent=False)
        lines.write(b"warns\n")
        assert read_all(pipe[0]) == b"waits\nwarns\n"
        lines.write(b"last\n", urgent=False)
        nursery.cancel_scope.cancel()
    assert read_all(pipe[0]) == b"last\n"


async def test_many_lines_do_not_wait(pipe, autojump_clock, monkeypatch):
    lines = LogWriter(pipe[1])
    monkeypatch.setattr(log, "_writers", [lines])
    async with trio.open_nursery() as nursery:
        await nursery.start(log.write_in_batches)
        for _ in range(log.BATCH_BYTES // 100 + 1):
            lines.write(b"x" * 99 + b"\n", urgent=False)
        assert read_all(pipe[0])
        nursery.cancel_scope.cancel()


def test_slow_reader_misses_nothing(pipe):
    """Lines that the pipe does not take wait, and go out with the next line."""
    lines = LogWriter(pipe[1])
    for number in range(2_000):
        lines.write(b"%0100d\n" % number)
    read = b""
    while read.count(b"\n") < 2_001:
        read += read_all(pipe[0])
        if read.count(b"\n") < 2_001:
            lines.write(b"" if read.count(b"\n") < 2_000 else b"last\n")

    assert read == b"".join(b"%0100d\n" % number for number in range(2_000)) + b"last\n"
    assert lines.lost == 0


def test_stalled_reader_gets_the_number_of_lost_lines(pipe):
    """Memory is limited. The oldest lines are kept: they tell how it began."""
    lines = LogWriter(pipe[1])
    written = 3 * KEPT_BYTES // 101
    for number in range(written):
        lines.write(b"%0100d\n" % number)
    lost = lines.lost
    assert lost > written // 3
    read = b""
    while b"log_lines_lost" not in read:
        read += read_all(pipe[0])
        lines.write(b"")

    kept, notice = read.splitlines()[:-1], json.loads(read.splitlines()[-1])
    assert kept == [b"%0100d" % number for number in range(written - lost)]
    assert notice == {"event": "log_lines_lost", "level": "error", "lines": lost}
    assert lines.lost == 0


def test_closed_reader_is_ignored(pipe):
    """Nothing is kept for it."""
    os.close(pipe[0])
    lines = LogWriter(pipe[1])
    for _ in range(3):
        lines.write(b"hello\n")

    assert lines.lost == 3


def test_full_disk_is_ignored():
    """The write fails without any other effect."""
    with open("/dev/full", "wb", buffering=0) as full:  # noqa: PTH123 - a device
        lines = LogWriter(full.fileno())
        lines.write(b"hello\n")

    assert lines.lost == 1


TEXTS = st.text() | st.just("\udc80.gguf")
EVENTS = st.builds(
    RequestEvent,
    request_id=TEXTS,
    model=st.none() | TEXTS,
    duration_ms=st.floats(0, 1e7),
    phases_ms=st.dictionaries(st.sampled_from(["connect", "idle"]), st.floats(0, 1e7)),
    key=st.just(UNSET) | TEXTS,
    cached_tokens=st.sampled_from([UNSET, None, 0, 17]),
    tokens_estimated=st.sampled_from([UNSET, True]),
    message=st.just(UNSET) | TEXTS,
    event=st.just("request"),
    level=st.just("info"),
    timestamp=st.just(""),
)
EVENT = RequestEvent(
    request_id="r",
    path="/",
    alias=None,
    model=None,
    node=None,
    status=200,
    outcome="ok",
    stream=False,
    duration_ms=1.0,
    phases_ms={},
    bytes_in=0,
    bytes_out=0,
)


@pytest.fixture
def json_log(pipe, monkeypatch):
    """The log as JSON into a pipe; returns what takes its next line."""
    with open(pipe[1], "w", closefd=False) as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setattr(log, "recent_log", RecentLog())
        log.configure(LogSettings(format="json"))
    yield lambda: read_all(pipe[0])
    structlog.reset_defaults()
    log._writers.clear()
    log._direct.processors = None


def timeless(line):
    """The line with zeros for the digits of its timestamp."""
    return re.sub(rb'("timestamp": ?")([^"]*)', lambda match: match[1] + re.sub(rb"\d", b"0", match[2]), line)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(event=EVENTS)
def test_event_of_a_request_is_written_as_structlog_writes_it(json_log, event):
    """The short way and structlog's own give the same bytes, and the same entry among the recent events."""
    logger, fields = structlog.get_logger(), event.fields()
    logger.info("request", **{name: fields[name] for name in fields if name not in {"event", "level", "timestamp"}})
    by_structlog = json_log()
    log.write_info(logger, event)

    assert timeless(json_log()) == timeless(by_structlog)
    one, other = log.recent_log.newest(2)
    assert one | {"timestamp": "", "number": 0} == other | {"timestamp": "", "number": 0}
    assert other["number"] == one["number"] + 1


def test_time_of_a_request_is_now(json_log):
    """In UTC, with microseconds, also after a line in an earlier second."""
    for _ in range(2):
        log._direct.second = "1764529200"
        before = datetime.now(UTC)
        log.write_info(structlog.get_logger(), EVENT)
        written = datetime.fromisoformat(json.loads(json_log())["timestamp"])
        assert before - timedelta(microseconds=1) <= written <= datetime.now(UTC)


def test_event_of_a_request_goes_where_a_test_listens(json_log):
    """Whatever else structlog is configured for gets it."""
    with structlog.testing.capture_logs() as events:
        log.write_info(structlog.get_logger(), EVENT)

    fields = EVENT.fields()
    del fields["level"], fields["timestamp"]
    assert events == [fields | {"log_level": "info"}]
    assert json_log() == b""


CONFIG = """
[gateway]
listen = "127.0.0.1:{api}"
metrics_listen = "127.0.0.1:{metrics}"
[deadlines]
connect_seconds = 60
[[neurons]]
name = "sim"
endpoint = "{endpoint}"
"""


def reader_gone():
    """A pipe without a reader, as with `cortex serve 2>&1 | head -1`."""
    theirs, ours = os.pipe()
    os.close(theirs)
    return ours


def reader_asleep():
    """A pipe whose reader never reads; its end stays open as long as the tests run."""
    return os.pipe()[1]


def closed():
    """No stderr at all: `2>&-`."""
    return


def full_disk():
    return os.open("/dev/full", os.O_WRONLY)


@contextmanager
def serving(config, stderr, endpoint):
    """`cortex serve` with this stderr: its process and port. It tries other ports if one is taken."""
    for _ in range(10):
        # Without stderr the process cannot print its port, so the test chooses it.
        api, metrics = a_port_of_our_own(), a_port_of_our_own()
        config.write_text(CONFIG.format(api=api, metrics=metrics, endpoint=endpoint))
        log = stderr()
        command = [sys.executable, "-m", "gateway.cli", "serve", "-c", str(config)]
        if log is None:
            command = ["bash", "-c", 'exec "$@" 2>&-', "bash", *command]
        with subprocess.Popen(command, env=environment(), stderr=log) as process:
            if log is not None:
                os.close(log)
            try:
                if _answers(process, api):
                    yield process, api
                    return
            finally:
                process.kill()
    raise AssertionError("it does not start")


def _answers(process, port):
    """True once it is ready; False if it ended before."""
    while process.poll() is None:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/ready", timeout=60).status_code == 200:
                return True
        except httpx.TransportError:
            time.sleep(0.05)
    return False


@pytest.mark.parametrize("stderr", [reader_gone, reader_asleep, full_disk, closed])
async def test_gateway_serves_on_without_a_log(tmp_path, nursery, stderr):
    """More requests than a pipe holds lines of, and a clean exit."""
    endpoint = await nursery.start(neuron("sim", [24576], [SMALL], speed=10_000).serve)

    def use():
        with serving(tmp_path / "cortex.toml", stderr, endpoint) as (process, port):
            body = {"model": SMALL, "messages": PROBE}
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
                for _ in range(400):  # some 400 bytes of log each; a pipe holds 64 KiB
                    assert http.post("/v1/chat/completions", json=body).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(SAFETY_NET_S) == 0

    await trio.to_thread.run_sync(use)


async def test_sigterm_loses_no_line(tmp_path, nursery):
    """Also of the requests that ended just before."""
    endpoint = await nursery.start(neuron("sim", [24576], [SMALL], speed=10_000).serve)
    path = tmp_path / "log"

    def use():
        with serving(tmp_path / "cortex.toml", lambda: os.open(path, os.O_WRONLY | os.O_CREAT), endpoint) as (
            process,
            port,
        ):
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as http:
                for _ in range(30):
                    http.post("/v1/chat/completions", json={"model": SMALL, "messages": PROBE})
            process.send_signal(signal.SIGTERM)
            assert process.wait(SAFETY_NET_S) == 0

    await trio.to_thread.run_sync(use)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert sum(event["event"] == "request" for event in events) == 30
    assert events[-1]["event"] == "drained"


def test_invalid_unicode_is_logged():
    """A file name as the operating system returns it, for example."""
    assert json.loads(_encode({"event": "seen", "path": "caf\udce9"})) == {"event": "seen", "path": "caf\udce9"}


def test_console_lines_are_not_python():
    """Objects and lists are written as text, without what is not set."""
    faults = [{"line": 6, "key": "aliases", "hint": None}, {"line": 7, "key": "models", "hint": None}]
    event = {"event": "x", "phases_ms": {"connect": 0.4}, "faults": faults, "empty": {}, "count": 3}
    assert _flatten_values(None, "info", event) == {
        "event": "x",
        "phases_ms": "connect=0.4",
        "faults": "line=6 key=aliases, line=7 key=models",
        "empty": "",
        "count": 3,
    }


@pytest.mark.parametrize(
    ("level", "logged", "kept"),
    [
        ("warning", ["warned", "raised"], ["informed", "warned", "raised"]),
        ("critical", [], ["informed", "warned", "raised"]),
        ("debug", ["debugged", "informed", "warned", "raised"], ["debugged", "informed", "warned", "raised"]),
    ],
)
def test_console_has_events_that_the_level_leaves_out_of_the_log(level, logged, kept):
    """From `info` on, so that its log page is of use with any level."""
    program = f"""
import json
import structlog
from gateway.config.settings import LogSettings
from gateway.telemetry import log
from gateway.telemetry.recent_log import recent_log
log.configure(LogSettings(format="json", level={level!r}))
logger = structlog.get_logger("test")
logger.debug("debugged")
logger.info("informed")
logger.warning("warned")
try:
    1 / 0
except ZeroDivisionError:
    logger.exception("raised")
print(json.dumps([event["event"] for event in recent_log.newest(10)]))
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, check=True)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == logged
    assert json.loads(done.stdout) == kept
