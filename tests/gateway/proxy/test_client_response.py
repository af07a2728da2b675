"""ClientResponse: which task may write when, and where a keep-alive or an error event may stand."""

import pytest
import trio
from fakes.asgi_send import RecordedSend
from fakes.patience import SAFETY_NET_S
from trio.testing import wait_all_tasks_blocked

from gateway.http import sse
from gateway.proxy.response.client_response import ClientGone, ClientResponse

HEAD = (200, [(b"content-type", b"text/event-stream")])
EVENT = b"data: x\n\n"


@pytest.fixture
def wire():
    return RecordedSend()


@pytest.fixture
def client(wire):
    return ClientResponse(wire.send)


async def test_keepalive_sends_the_head_first_if_it_was_not_sent(client, wire):
    """That is the early 200."""
    await client.send_keepalive(lambda: HEAD)

    assert wire.starts == [200]
    assert wire.body == sse.KEEP_ALIVE
    assert (client.started, client.committed) == (True, False)


@pytest.mark.parametrize("written", [b"data: x", b"data: x\n", b"data: x\r\n", b"d", b": comment\n"])
async def test_keepalive_is_not_sent_inside_an_event(client, wire, written):
    """Nor after a line that may continue."""
    await client.start(*HEAD)
    await client.write(written)
    await client.send_keepalive(lambda: HEAD)

    assert wire.body == written


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
async def test_keepalive_is_sent_between_events_also_after_a_blank_line_sent_in_bytes(client, wire, end):
    """The blank line may arrive one byte at a time."""
    await client.start(*HEAD)
    for byte in b"data: x" + end:
        await client.write(bytes([byte]))
    await client.send_keepalive(lambda: HEAD)

    assert wire.body == b"data: x" + end + sse.KEEP_ALIVE


async def test_keepalive_is_skipped_during_a_write_and_a_write_waits_for_a_keepalive(client, wire):
    """Two tasks write, never at the same time, and no bytes are lost."""
    await client.start(*HEAD)
    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.write, EVENT)
        await wait_all_tasks_blocked()
        nursery.start_soon(client.send_keepalive, lambda: HEAD)
        await wait_all_tasks_blocked()
        wire.blocked.set()
    assert wire.body == EVENT

    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_keepalive, lambda: HEAD)
        await wait_all_tasks_blocked()
        nursery.start_soon(client.write, EVENT)
        await wait_all_tasks_blocked()
        wire.blocked.set()
    assert wire.body == EVENT + sse.KEEP_ALIVE + EVENT
    assert client.bytes_sent == len(wire.body)


@pytest.mark.parametrize("how", ["end", "fail", "respond"])
async def test_no_keepalive_follows_the_end(client, wire, how):
    """However the response ends, and also while its last bytes are being sent."""
    ends = {
        "end": lambda: client.end(EVENT),
        "fail": lambda: client.end_with_error(sse.write(b"{}")),
        "respond": lambda: client.respond(503, [], b"{}"),
    }
    if how != "respond":
        await client.start(*HEAD)
    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends[how])
        await wait_all_tasks_blocked()
        await client.send_keepalive(lambda: HEAD)
        wire.blocked.set()
    await client.send_keepalive(lambda: HEAD)

    assert sse.KEEP_ALIVE not in wire.body
    assert wire.messages[-1]["more_body"] is False
    assert len(wire.starts) == 1
    assert client.ended


@pytest.mark.parametrize(
    ("written", "cut"), [(b"", b""), (EVENT, b""), (b"data: {", b"\n\n"), (b"data: {}\n", b"\n\n")]
)
async def test_error_event_is_not_joined_with_a_partial_event(client, wire, written, cut):
    """A partial event is ended with a blank line before the error event."""
    await client.start(*HEAD)
    if written:
        await client.write(written)
    await client.end_with_error(sse.write(b'{"error":{}}'))

    assert wire.body == written + cut + b'data: {"error":{}}\n\n'


async def test_every_write_to_a_disconnected_client_raises_client_gone(client, wire):
    """A failed write does not block the next one."""
    await client.start(*HEAD)
    wire.disconnected = True
    for write in (client.write, client.end):
        with pytest.raises(ClientGone):
            await write(EVENT)
    other = ClientResponse(wire.send)
    with pytest.raises(ClientGone):
        await other.send_keepalive(lambda: HEAD)
    with pytest.raises(ClientGone):
        await other.write(EVENT)


async def test_cancelled_keepalive_does_not_block_the_next_write(client, wire):
    """The keep-alive task is cancelled with its nursery; the error event must still be sent."""
    await client.start(*HEAD)
    wire.blocked = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send_keepalive, lambda: HEAD)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    wire.blocked = None
    with trio.fail_after(SAFETY_NET_S):
        await client.end_with_error(sse.write(b"{}"))

    assert wire.body == b"data: {}\n\n"
