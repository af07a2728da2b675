"""The tasks of a request that serve its client: watch for its disconnect, and send keep-alives."""

from __future__ import annotations

import trio

from gateway.asgi import Receive
from gateway.proxy.response.client_response import ClientGone, ClientResponse
from gateway.proxy.response.keepalive import KeepAlive
from gateway.telemetry.request_record import RequestRecord

__all__ = ["LAST_BYTES_S", "client_left", "keep_alive", "watch_client"]

# How long a neuron may take to end the body after the stream's terminator, if the client disconnects at the terminator.
# Usually the end is on its way, and the connection to the neuron can be used again.
LAST_BYTES_S = 1.0


async def watch_client(
    receive: Receive, client: ClientResponse, record: RequestRecord, scope: trio.CancelScope
) -> None:
    """Cancel the request when the client disconnects. Starts when the request has been read.

    A task of the request, where the server does not call `client_left` itself.
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    client_left(client, record, scope)


def client_left(client: ClientResponse, record: RequestRecord, scope: trio.CancelScope) -> None:
    """The client has disconnected: cancel the request, unless nothing but its last bytes is missing."""
    if client.ending:
        return  # ASGI servers send `http.disconnect` after a complete response, too
    if client.terminator_sent or client.is_writing_terminator:
        # While it is being written the server may have sent it already: the write's end decides.
        record.outcome = "ok" if client.terminator_sent else "client_disconnected"
        scope.deadline = trio.current_time() + LAST_BYTES_S
        return
    record.outcome = "client_disconnected"
    scope.cancel()


async def keep_alive(keepalive: KeepAlive, record: RequestRecord, scope: trio.CancelScope) -> None:
    """Send keep-alives, and cancel the request if the client turns out to be gone."""
    try:
        await keepalive.run()
    except ClientGone:
        record.outcome = "client_disconnected"
        scope.cancel()
