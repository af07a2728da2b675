"""When a capture begins and ends, how much it keeps, and what the audit log has."""

import pytest
import trio

from gateway import errors
from gateway.server.capture.capture import ENTRIES, TEXT_BYTES, Capture, CapturedRequest
from gateway.server.capture.capture_app import CaptureApp

LIMIT_BYTES = 2_000_000


@pytest.fixture
async def capture(nursery):
    lines = []
    found = Capture(
        is_allowed=True, limit_bytes=LIMIT_BYTES, longest_s=3600, record=lambda *who, **line: lines.append((*who, line))
    )
    found.lines = lines
    await nursery.start(found.run)
    return found


def entry(text="x"):
    return CapturedRequest("id", 0.0, "a", "m", "n", 200, [{"role": "user", "text": text}], "answer", is_cut=False)


async def test_capture_ends_by_itself_and_erases_its_texts(autojump_clock, capture):
    capture.start("a", 600, "olga", is_redacted=False)
    running = capture.running
    running.keep(entry())
    await trio.sleep(599)
    assert capture.status()["kept"] == 1
    await trio.sleep(2)
    assert (capture.running, capture.status(), len(running.entries)) == (None, None, 0)
    assert [line["outcome"] for _, _, line in capture.lines] == [
        "running",
        "1 requests were captured; their texts are erased",
    ]


async def test_operator_stops_a_capture(autojump_clock, capture):
    capture.start("a", 600, "olga", is_redacted=True)
    capture.stop("paul")
    assert capture.lines[-1][1] == "paul"
    with pytest.raises(errors.NotFound):
        capture.stop("paul")
    capture.start("b", 10, "olga", is_redacted=False)
    await trio.sleep(11)
    assert capture.running is None


async def test_new_capture_ends_the_one_before(autojump_clock, capture):
    capture.start("a", 600, "olga", is_redacted=False)
    before = capture.running
    before.keep(entry())
    capture.start("b", 600, "paul", is_redacted=False)
    assert before.is_over
    assert not before.entries
    assert capture.status()["alias"] == "b"


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan"), float("inf")])
async def test_time_is_limited(autojump_clock, capture, seconds):
    with pytest.raises(errors.BadRequest):
        capture.start("a", seconds, "olga", is_redacted=False)


async def test_capture_must_be_allowed(autojump_clock):
    capture = Capture(is_allowed=False, limit_bytes=1, longest_s=1, record=print)
    with pytest.raises(errors.Conflict, match="enabled = true"):
        capture.start("a", 1, "olga", is_redacted=False)


async def test_memory_is_limited(autojump_clock, capture):
    """The oldest texts give way; there are never more than `ENTRIES` of them."""
    capture.start("a", 600, "olga", is_redacted=False)
    running = capture.running
    for number in range(2000):
        running.keep(entry(f"{number} " + "x" * 10_000))
        assert running.used_bytes == sum(each.size for each in running.entries) <= LIMIT_BYTES
    assert running.entries[-1].messages[0]["text"].startswith("1999 ")
    for _ in range(ENTRIES * 2):
        running.keep(entry())
    assert len(running.entries) <= ENTRIES


async def test_long_bodies_are_cut(autojump_clock, capture):
    """Of the request and of the answer; what passes is whole, and all memory is given back."""
    capture.start("a", 600, "olga", is_redacted=False)
    body, sent = b"y" * (3 * TEXT_BYTES), []

    async def inference(scope, receive, send):
        assert (await receive())["body"] == body
        headers = [(b"x-cortex-alias", b"a"), (b"content-type", b"text/plain")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message):
        sent.append(message)

    await CaptureApp(inference, capture)({"type": "http", "headers": []}, receive, send)
    [kept] = capture.running.entries
    assert (sent[1]["body"], kept.is_cut, len(kept.answer)) == (body, True, TEXT_BYTES)
    assert capture.running.used_bytes == kept.size
