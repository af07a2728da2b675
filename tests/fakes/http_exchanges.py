"""An HTTP/1.1 server in memory: what a test sends to it, and what comes back."""

import json
import re
from typing import NamedTuple

import structlog
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from gateway.http.server import HttpServer, ServerLimits
from gateway.http.server_exchange import ClientDisconnected

GET = b"GET /x?y=1 HTTP/1.1\r\nhost: a\r\n\r\n"
POST = b"POST /echo HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello"
CHUNKED = b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n"


class ServerStatistics(NamedTuple):
    """Open connections, idle ones among them, requests served, and connections rejected."""

    open: int
    idle: int
    served: int
    refused: int


def server_statistics(server):
    idle = sum(connection.idle for connection in server._connections)
    return ServerStatistics(len(server._connections), idle, server._state.served, server._refused)


async def read_body(receive):
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected
        body += message["body"]
        if not message["more_body"]:
            return body


async def echo(scope, receive, send):
    """Responds with the request's method, path and body."""
    body = await read_body(receive)
    seen = {"method": scope["method"], "path": scope["path"], "query": scope["query_string"].decode()}
    data = json.dumps({**seen, "body": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
    await send({"type": "http.response.body", "body": data})


def make_server(app=echo, **limits):
    return HttpServer(app, limits=ServerLimits(**limits), log=structlog.get_logger())


async def serve(server, stream):
    """Serve one connection, with the deadlines that the server watches."""
    async with trio.open_nursery() as nursery:
        await nursery.start(server.watch_connections)
        await server.serve_stream(stream)
        nursery.cancel_scope.cancel()


async def read_all(stream):
    data = b""
    while piece := await stream.receive_some(65536):
        data += piece
    return data


async def exchange(data, app=echo, step=None, **limits):
    """Send `data`, `step` bytes at a time, until the server closes; return everything it sent."""
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, make_server(app, **limits), theirs)
        step = step or len(data) or 1
        try:
            for start in range(0, len(data), step):
                await ours.send_all(data[start : start + step])
                await wait_all_tasks_blocked()
        except trio.BrokenResourceError:
            pass
        with trio.fail_after(1000):
            response = await read_all(ours)
    return response


async def respond(send, *bodies, status=200, headers=()):
    """Send one response, one message per body."""
    await send({"type": "http.response.start", "status": status, "headers": headers})
    for body in bodies[:-1]:
        await send({"type": "http.response.body", "body": body, "more_body": True})
    await send({"type": "http.response.body", "body": bodies[-1]})


def statuses(data):
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) ", data)]


def parse(data):
    """Split one response into status, headers and body, without chunk framing."""
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
    if headers.get(b"transfer-encoding") == b"chunked":
        body = dechunk(body)
    return int(lines[0].split()[1]), headers, body


def dechunk(data):
    body = b""
    while True:
        size, _, rest = data.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            assert rest == b"\r\n"
            return body
        body, data = body + rest[:length], rest[length + 2 :]
