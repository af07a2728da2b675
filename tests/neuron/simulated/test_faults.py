"""The fault knobs: what each does to the bytes, read raw from a real socket."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
import trio
from sim_wire import Dial, Raw, read_until, request

from neuron.simulated import SimNeuron, faults
from neuron.simulated.faults import FaultBook, SimFault

SMALL, LARGE = "Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"
STREAM = request(SMALL, stream=True, stream_options={"include_usage": True})
WHOLE = request(SMALL)
HEALTH = b"GET /health HTTP/1.1\r\nhost: sim\r\nconnection: close\r\n\r\n"
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nserver: sim-neuron\r\ncontent-type: text/event-stream\r\n"


@pytest.mark.parametrize(
    "fault",
    [faults.Refuse(), faults.RefuseAccept(), faults.Refuse(model=SMALL)],
)
async def test_refuse_closes_before_any_byte(raw: Raw, simulated: SimNeuron, fault: SimFault) -> None:
    """Not a byte comes back. Some kernels call it a reset, as what was sent came to a closed door."""
    simulated.faults.add(fault)
    try:
        got = await raw(STREAM)
    except trio.BrokenResourceError:
        got = b""
    assert got == b""


@pytest.mark.parametrize("fault", [faults.Refuse(reset=True), faults.RefuseAccept(reset=True)])
async def test_refuse_with_reset(raw: Raw, simulated: SimNeuron, fault: SimFault) -> None:
    """The client sees an RST."""
    simulated.faults.add(fault)
    with pytest.raises(trio.BrokenResourceError):
        await raw(STREAM)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (faults.HttpError(text="boom"), (500, "application/json", '{"error":"boom"}')),
        (faults.HttpError(text="boom", plain=True), (500, "text/plain; charset=utf-8", "boom")),
        (
            faults.HttpError(status=400, text="boom", numeric=True),
            (400, "application/json", '{"error":{"code":400,"message":"boom","type":"server_error"}}'),
        ),
        (
            faults.NotLoaded(),
            (404, "application/json", """{"error":"model 'Qwen/Qwen3-1.7B' not loaded on this neuron"}"""),
        ),
    ],
)
async def test_error_answers(
    client: httpx.AsyncClient, simulated: SimNeuron, fault: SimFault, expected: tuple[int, str, str]
) -> None:
    """Errors as a neuron, and as less well-behaved engines, tell them."""
    simulated.faults.add(fault)
    answer = await client.post("/v1/chat/completions", json={"model": SMALL, "messages": []})

    assert (answer.status_code, answer.headers["content-type"], answer.text) == expected


async def test_full_says_when_to_come_back(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """503 with Retry-After."""
    simulated.faults.add(faults.HttpError(status=503, text="full", retry_after_s=7))
    answer = await client.post("/v1/chat/completions", json={"model": SMALL, "messages": []})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")


async def test_garbage_is_not_http(raw: Raw, simulated: SimNeuron) -> None:
    """Something else answers on the port."""
    simulated.faults.add(faults.Garbage())
    assert (await raw(STREAM)).startswith(b"SSH-2.0")


async def test_big_headers_are_as_big_as_asked(raw: Raw, simulated: SimNeuron) -> None:
    """A header block beyond all limits."""
    simulated.faults.add(faults.BigHeaders(size_bytes=100_000))
    assert len(await raw(STREAM)) > 100_000


async def test_informational_responses_come_first(client: httpx.AsyncClient, raw: Raw, simulated: SimNeuron) -> None:
    """Two 103s, then the real answer, which a client gets as if nothing had been."""
    simulated.faults.add(faults.Informational(count=2), faults.CloseAfter())
    got = await raw(WHOLE)
    assert got.count(b"HTTP/1.1 103 Early Hints\r\n") == 2
    assert got.index(b"HTTP/1.1 200 OK") > got.rindex(b"103")
    answer = await client.post("/v1/chat/completions", json={"model": SMALL, "messages": []})
    assert answer.status_code == 200


@pytest.mark.parametrize("cut", ["between", "chunk", "event"])
async def test_drop_breaks_off_after_k_events(raw: Raw, simulated: SimNeuron, cut: str) -> None:
    """Two events arrive whole, half of the third does or nothing of it, and there is no end to the chunks."""
    simulated.faults.add(faults.Drop(after=2, cut=cut))
    got = await raw(STREAM)

    assert got.startswith(STREAM_HEAD)
    assert got.count(b"\n\n\r\n") == 2
    assert got.count(b"data: ") == (2 if cut == "between" else 3)
    assert got.endswith(b"\r\n") is (cut != "chunk")
    assert not got.endswith(b"0\r\n\r\n")


async def test_drop_with_reset(connect: Dial, simulated: SimNeuron) -> None:
    """The connection breaks instead of ending."""
    simulated.faults.add(faults.Drop(after=2, how="rst"))
    async with await connect() as stream:
        await stream.send_all(STREAM)
        with pytest.raises(trio.BrokenResourceError):
            await read_until(stream, b"[DONE]")


async def test_drop_of_a_plain_body_comes_up_short(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """Half of what content-length promised."""
    simulated.faults.add(faults.Drop())
    with pytest.raises(httpx.RemoteProtocolError):
        await client.post("/v1/chat/completions", json={"model": SMALL, "messages": []})


@pytest.mark.parametrize("sent", [STREAM, WHOLE])
async def test_malformed_chunk(raw: Raw, simulated: SimNeuron, sent: bytes) -> None:
    """A chunk whose size is no number."""
    simulated.faults.add(faults.MalformedChunk(after=1))
    assert b"\r\nzz\r\n" in await raw(sent)


async def test_no_done(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """The stream ends properly as HTTP, and without its terminator."""
    simulated.faults.add(faults.NoDone())
    answer = await client.post("/v1/chat/completions", json={"model": SMALL, "messages": [], "stream": True})
    assert b"[DONE]" not in answer.content
    assert b'"finish_reason":"stop"' in answer.content


@pytest.mark.parametrize(("where", "expected"), [("finish", [("stop", 1)]), ("choices", [(None, 1)]), ("none", [])])
async def test_odd_usage(
    client: httpx.AsyncClient, simulated: SimNeuron, where: str, expected: list[tuple[str | None, int]]
) -> None:
    """Usage on the finish chunk, on one with choices of its own, or nowhere."""
    simulated.faults.add(faults.OddUsage(where=where))
    body = {"model": SMALL, "messages": [], "stream": True, "stream_options": {"include_usage": True}}
    answer = await client.post("/v1/chat/completions", json=body)

    events = [json.loads(line[6:]) for line in answer.text.split("\n\n") if line.startswith("data: {")]
    found = [(event["choices"][0]["finish_reason"], len(event["choices"])) for event in events if "usage" in event]
    assert found == expected


@pytest.mark.parametrize("sent", [STREAM, WHOLE])
async def test_close_after_while_advertising_keep_alive(raw: Raw, simulated: SimNeuron, sent: bytes) -> None:
    """The answer is whole and promises more; the connection ends."""
    simulated.faults.add(faults.CloseAfter())
    got = await raw(sent, sent)

    assert b"connection: keep-alive" in got
    assert got.count(b"HTTP/1.1 200") == 1
    assert b"Tbil" in got


async def test_wrong_model_echo(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """The answer names another model than was asked."""
    simulated.faults.add(faults.WrongModel(echo="other@main"))
    answer = await client.post("/v1/chat/completions", json={"model": SMALL, "messages": []})
    assert answer.json()["model"] == "other@main"


@pytest.mark.parametrize("sent", [STREAM, WHOLE])
async def test_until_close_has_neither_length_nor_chunks(raw: Raw, simulated: SimNeuron, sent: bytes) -> None:
    """The end of the connection is the end of the body."""
    simulated.faults.add(faults.UntilClose())
    head, _, body = (await raw(sent)).partition(b"\r\n\r\n")

    assert b"content-length" not in head
    assert b"transfer-encoding" not in head
    assert body.startswith((b"data: ", b"{"))


async def test_content_length_stream(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """A stream that knows its length, and keeps to it."""
    simulated.faults.add(faults.ContentLength())
    answer = await client.post("/v1/chat/completions", json={"model": SMALL, "messages": [], "stream": True})

    assert int(answer.headers["content-length"]) == len(answer.content)
    assert answer.content.endswith(b"[DONE]\n\n")


async def test_statuses_reported(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """`/models` says poisoned of one and unservable of another, whatever is true."""
    simulated.faults.add(faults.ReportStatus(model=SMALL), faults.Unservable(model=LARGE, reason="no_cuda"))
    entries = {entry["id"]: entry for entry in (await client.get("/models")).json()}

    assert (entries[SMALL]["status"], "servable" in entries[SMALL]) == ("poisoned", False)
    assert entries[LARGE]["servable"] == {"ok": False, "reason": "no_cuda", "detail": None}


async def test_load_failure_frees_the_vram(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """A load that fails once says why, leaves nothing behind, and goes well the next time."""
    simulated.faults.add(faults.LoadFails(text="bad weights", times=1))
    used_mb = simulated.vram_used_mb(1)
    body = {"model_id": "Qwen/Qwen3-8B", "harness": "x"}
    refused = await client.post("/models/load", json=body)

    assert (refused.status_code, refused.json()) == (400, {"error": "bad weights"})
    assert simulated.vram_used_mb(1) == used_mb
    assert (await client.post("/models/load", json=body)).status_code == 200


@pytest.mark.parametrize("fault", [faults.Unresponsive(), faults.Hang(), faults.LoadHangs()])
async def test_hangs_end_with_the_client(connect: Dial, simulated: SimNeuron, fault: SimFault) -> None:
    """Nothing comes, and nothing is left when the client goes."""
    simulated.faults.add(fault)
    body = b'{"model_id":"Qwen/Qwen3-8B"}'
    sent = STREAM
    if isinstance(fault, faults.LoadHangs):
        sent = b"POST /models/load HTTP/1.1\r\nhost: sim\r\ncontent-length: %d\r\n\r\n" % len(body) + body
    async with await connect() as stream:
        await stream.send_all(sent)
        with trio.move_on_after(0.05) as waited:
            await stream.receive_some()
        assert waited.cancelled_caught


async def test_one_management_endpoint_fails(client: httpx.AsyncClient, simulated: SimNeuron) -> None:
    """`/health` is down while the rest is well."""
    simulated.faults.add(faults.EndpointFails(path="/health"))

    assert (await client.get("/health")).status_code == 500
    assert (await client.get("/models")).status_code == 200


async def test_faults_over_http(client: httpx.AsyncClient) -> None:
    """A fault is set for one model and two requests, spends itself, and can be cleared; a typo is refused."""
    fault = {"fault": "http_error", "model": SMALL, "status": 502, "times": 2}
    listed = (await client.post("/sim/faults", json=fault)).json()
    assert [(entry["fault"], entry["times"]) for entry in listed] == [("http_error", 2)]

    async def status(model: str) -> int:
        return (await client.post("/v1/chat/completions", json={"model": model, "messages": []})).status_code

    assert [await status(SMALL), await status(LARGE), await status(SMALL), await status(SMALL)] == [502, 200, 502, 200]

    await client.post("/sim/faults", json={"fault": "unresponsive"})
    assert (await client.request("DELETE", "/sim/faults")).json() == []
    assert await status(SMALL) == 200
    assert (await client.post("/sim/faults", json={"fault": "drop", "afer": 3})).status_code == 400
    assert (await client.post("/sim/faults", json={"fault": "dorp"})).status_code == 400


def test_later_fault_wins_over_an_earlier_one_of_its_kind() -> None:
    """The narrower fault set last is the one that befalls the request, and only it is spent."""
    book = FaultBook()
    book.add(faults.Slow(factor=2, times=5), faults.Slow(factor=3, model=SMALL, times=1))

    first, second = book.plan(SMALL).get(faults.Slow), book.plan(SMALL).get(faults.Slow)
    assert first is not None
    assert second is not None
    assert (first.factor, second.factor) == (3, 2)
    assert [entry["times"] for entry in book.in_force()] == [4]


async def test_malformed_request_is_a_violation(raw: Raw, simulated: SimNeuron) -> None:
    """What h11 cannot read is refused and noted: the gateway's parser is not its own judge."""
    got = await raw(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n")

    assert got.startswith(b"HTTP/1.1 400 ")
    assert simulated.violations
    assert simulated.violations[0].startswith("malformed HTTP: ")


async def test_unload_under_a_running_request_is_a_violation(connect: Dial, simulated: SimNeuron) -> None:
    """A gateway that unloads what is answering is caught at it."""
    simulated.speed = 1e-9
    async with await connect() as stream:
        await stream.send_all(STREAM)
        await read_until(stream, b'"role"')
        simulated.unload(SMALL)

    assert simulated.violations == [f"unload of '{SMALL}' with 1 requests in flight"]


async def test_connection_survives_pipelined_requests(raw: Raw, simulated: SimNeuron) -> None:
    """What a client sends while being answered is kept, and answered in turn."""
    got = await raw(WHOLE, WHOLE, HEALTH)
    assert got.count(b"HTTP/1.1 200 OK") == 3
    assert not simulated.violations


async def test_close_every_closes_after_so_many_answers_and_says_nothing_before(raw: Raw, simulated: SimNeuron) -> None:
    """Three requests on one connection, two answers, neither of which announces the end."""
    simulated.faults.add(faults.CloseEvery(requests=2))
    keep = HEALTH.replace(b"connection: close\r\n", b"")
    answer = await raw(keep, keep, keep)
    assert answer.count(b"HTTP/1.1 200 OK") == 2
    assert b"connection: close" not in answer.lower()


async def test_close_idle_closes_a_connection_that_rests(
    dial: Callable[[], trio.abc.Stream], simulated: SimNeuron, autojump_clock: object
) -> None:
    """Exactly then, and not while it is asked something."""
    simulated.faults.add(faults.CloseIdle(seconds=5))
    stream = dial()
    for pause_s in (4.9, 4.9):
        await trio.sleep(pause_s)
        await stream.send_all(HEALTH.replace(b"connection: close\r\n", b""))
        assert (await read_until(stream, b'"rejected_timeout":0}]}')).startswith(b"HTTP/1.1 200 OK")
    assert await stream.receive_some(65536) == b""
    assert trio.current_time() == pytest.approx(4.9 + 4.9 + 5)
