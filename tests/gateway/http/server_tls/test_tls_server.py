"""Our own server with TLS, on real sockets, against Python's own client."""

import socket
import ssl
import struct
import time
from functools import partial

import pytest
import structlog
import trio
from fakes.certificates import Authority
from fakes.patience import SAFETY_NET_S, until
from structlog.testing import capture_logs

from gateway.asgi import exchange_of
from gateway.http.server import HttpServer, ServerLimits
from gateway.http.server_tls import certificate_store
from gateway.http.server_tls.certificate_files import CertificateFiles, load_context
from gateway.http.server_tls.certificate_store import CertificateStore

GET = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def issued(ca):
    return ca.issue("server")


async def echo(scope, receive, send):
    """Answer with the scheme and the request's body."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": scope["scheme"].encode() + b" " + body})


@pytest.fixture
async def start(nursery, ca, issued):
    """Start a server with TLS; returns it and its port."""

    async def start_server(app=echo, *, client_ca=None, certificates=None, **limits):
        store = certificates or CertificateStore(CertificateFiles(issued.cert, issued.key, client_ca))
        server = HttpServer(app, limits=ServerLimits(**limits), log=structlog.get_logger(), tls=store.context)
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(server.serve, listeners)
        return server, listeners[0].socket.getsockname()[1]

    yield start_server
    nursery.cancel_scope.cancel()


def client_context(ca, *, own=None, version=None, alpn=("http/1.1",)):
    context = ssl.create_default_context(cafile=ca.cert)
    context.set_alpn_protocols(list(alpn))
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


async def connect(port, context):
    """A client's stream after its handshake."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    tls = trio.SSLStream(stream, context, server_hostname="localhost", https_compatible=False)
    try:
        with trio.fail_after(SAFETY_NET_S):
            await tls.do_handshake()
    except trio.BrokenResourceError:
        await trio.aclose_forcefully(tls)
        raise
    return tls


async def read_response(stream):
    """Head and body of a response that ends with the connection or its content-length."""
    data = b""
    with trio.fail_after(SAFETY_NET_S):
        while b"\r\n\r\n" not in data:
            data += await stream.receive_some() or pytest.fail(f"cut off: {data}")
        head, _, body = data.partition(b"\r\n\r\n")
        size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(body) < size:
            body += await stream.receive_some()
    return head, body


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_requests_and_large_bodies_in_both_directions(start, ca, version):
    """On one connection; `scheme` is https, and ALPN chooses HTTP/1.1."""
    _, port = await start()
    stream = await connect(port, client_context(ca, version=version, alpn=("h2", "http/1.1")))
    assert stream.selected_alpn_protocol() == "http/1.1"
    for size in (0, 3_000_000, 10):
        body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                stream.send_all, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (size, body)
            )
            _, answer = await read_response(stream)
        assert answer == b"https " + body
    await stream.aclose()


async def test_tls_1_1_is_refused(start, ca):
    _, port = await start()
    context = client_context(ca)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(trio.BrokenResourceError):
        await connect(port, context)


async def test_client_needs_a_certificate_of_the_client_ca(start, ca, tmp_path):
    """One of another CA is refused, and the log says why, but not more often than every ten seconds."""
    _, port = await start(client_ca=ca.cert)
    stream = await connect(port, client_context(ca, own=ca.issue("client")))
    await stream.send_all(GET)
    assert (await read_response(stream))[1] == b"https "
    await stream.aclose()
    stranger = Authority(tmp_path, "stranger").issue("intruder")
    with capture_logs() as logs:
        for own in (None, stranger, stranger):
            stream = await connect(port, client_context(ca, own=own))
            with pytest.raises(trio.BrokenResourceError):  # TLS 1.3: the client learns of it when it reads
                await stream.receive_some()
            await trio.aclose_forcefully(stream)
    failures = [entry for entry in logs if entry["event"] == "tls_handshake_failed"]
    assert [(entry["reason"], entry["client"]) for entry in failures] == [
        ("peer did not return a certificate", "127.0.0.1")
    ]


async def test_client_without_tls_gets_an_error_that_it_can_read(start):
    _, port = await start()
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(GET)
        data = b"".join([piece async for piece in stream])
    assert data.startswith(b"HTTP/1.1 400 ")
    assert b"this port speaks TLS: use https" in data


async def test_unfinished_handshake_ends_at_the_header_deadline(start):
    """As an unfinished header does."""
    server, port = await start(header_s=0.2)
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(b"\x16\x03\x01")
        with trio.fail_after(SAFETY_NET_S):
            assert await stream.receive_some() == b""
    await until(lambda: not server._connections)


async def test_unfinished_handshakes_make_room_for_a_newcomer(start, ca):
    """They must not lock others out."""
    server, port = await start(connections=3)
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(3)]
    await until(lambda: len(server._connections) == 3)
    stream = await connect(port, client_context(ca))
    await stream.send_all(GET)
    assert (await read_response(stream))[1] == b"https "
    with trio.fail_after(SAFETY_NET_S):
        assert await silent[0].receive_some() == b""
    for each in (stream, *silent):
        await trio.aclose_forcefully(each)


# Ends of connections ..................................................................................................


async def wait_for_departure(departed, scope, receive, send):
    """Register for the client's departure, as the proxy does, and wait for it."""
    gone = trio.Event()
    assert exchange_of(scope).on_departure(gone.set)
    await gone.wait()
    departed.append(scope["path"])


@pytest.mark.parametrize("how", ["close_notify", "close", "reset", "half_close"])
async def test_client_that_leaves_ends_its_request(start, ca, how):
    """By one task for all connections, as without TLS: nothing reads this connection meanwhile."""
    departed = []
    _, port = await start(partial(wait_for_departure, departed))
    stream = await connect(port, client_context(ca))
    await stream.send_all(GET)
    await trio.sleep(0.05)
    tcp = stream.transport_stream
    if how == "close_notify":
        await stream.aclose()
    elif how == "half_close":
        tcp.socket.shutdown(trio.socket.SHUT_WR)
    else:
        if how == "reset":
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        tcp.socket.close()
    await until(lambda: departed == ["/"])
    await trio.aclose_forcefully(stream)


async def test_end_of_a_response_is_marked_with_close_notify(start, ca):
    """A client that checks for truncation (https_compatible=False) reads an orderly end."""
    _, port = await start()
    stream = await connect(port, client_context(ca))
    await stream.send_all(GET.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n"))
    with trio.fail_after(SAFETY_NET_S):
        data = b"".join([piece async for piece in stream])
    assert data.endswith(b"https ")
    await stream.aclose()


async def test_response_without_a_length_that_is_cut_off_has_no_close_notify(start, ca):
    """Else an HTTP/1.0 client would take it for complete."""

    async def broken(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
        raise OSError("the neuron is gone")

    _, port = await start(broken)
    stream = await connect(port, client_context(ca))
    await stream.send_all(b"GET / HTTP/1.0\r\n\r\n")
    with pytest.raises(trio.BrokenResourceError), trio.fail_after(SAFETY_NET_S):
        while await stream.receive_some():
            pass
    await trio.aclose_forcefully(stream)


async def test_early_error_reaches_a_client_that_still_sends(start, ca):
    """The server goes on reading for a moment after its `close_notify`; a close would reset the connection."""

    async def refuse(scope, receive, send):
        await send({"type": "http.response.start", "status": 413, "headers": []})
        await send({"type": "http.response.body", "body": b"too large"})

    _, port = await start(refuse)
    stream = await connect(port, client_context(ca))
    await stream.send_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9000000\r\n\r\n" + b"x" * 200_000)
    head, body = await read_response(stream)
    assert (head[:12], body) == (b"HTTP/1.1 413", b"too large")
    await trio.aclose_forcefully(stream)


async def test_client_that_reads_nothing_is_dropped(start, ca):
    """After `client_write_s`, although TLS hides how much of a write was taken."""
    gone = trio.Event()

    async def endless(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
        finally:
            gone.set()

    _, port = await start(endless, client_write_s=0.3)
    stream = await connect(port, client_context(ca))
    await stream.send_all(GET)
    with trio.fail_after(SAFETY_NET_S):
        await gone.wait()
    await trio.aclose_forcefully(stream)


# Certificates that change .............................................................................................


async def serial_of(port, ca):
    """The serial number of the certificate that a new connection gets."""
    stream = await connect(port, client_context(ca))
    serial = int(stream.getpeercert()["serialNumber"], 16)
    await trio.aclose_forcefully(stream)
    return serial


async def test_changed_certificate_is_in_force_for_new_connections(start, ca, nursery, tmp_path, monkeypatch):
    """Also if a symlink is swapped, as Kubernetes does; a pair that does not fit changes nothing until it does."""
    monkeypatch.setattr(certificate_store, "LOOK_INTERVAL_S", 0.02)
    pairs = {}
    for number in (11, 12):
        folder = tmp_path / f"v{number}"
        folder.mkdir()
        issued = ca.issue(f"s{number}", serial=number)
        issued.cert.rename(folder / "tls.crt")
        issued.key.rename(folder / "tls.key")
        pairs[number] = folder
    data = tmp_path / "..data"
    data.symlink_to(pairs[11])
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).symlink_to(f"..data/{name}")
    store = CertificateStore(CertificateFiles(tmp_path / "tls.crt", tmp_path / "tls.key"))
    await nursery.start(store.watch)
    _, port = await start(certificates=store)
    kept = await connect(port, client_context(ca))
    assert await serial_of(port, ca) == 11

    new = tmp_path / "..new"
    new.symlink_to(pairs[12])
    new.rename(data)
    shared = store.shared_context(("h2",))
    with trio.fail_after(SAFETY_NET_S):
        while await serial_of(port, ca) != 12:
            await trio.sleep(0.01)

    with capture_logs() as logs:
        (pairs[12] / "tls.key").write_bytes((pairs[11] / "tls.key").read_bytes())
        await until(lambda: store.error is not None)
        assert "does not belong to the certificate" in store.error
        assert await serial_of(port, ca) == 12
        (pairs[12] / "tls.crt").write_bytes((pairs[11] / "tls.crt").read_bytes())
        await until(lambda: store.error is None)
    assert [entry["event"] for entry in logs] == ["certificate_rejected", "certificate_in_force"]
    assert await serial_of(port, ca) == 11
    assert shared is not store.context()

    await kept.send_all(GET)  # a connection keeps its certificate
    assert (await read_response(kept))[1] == b"https "
    await trio.aclose_forcefully(kept)


@pytest.mark.parametrize(
    ("left_days", "text"),
    [(365, None), (13, "expires on {day}, in 13 days: renew it"), (0, "expired on {day}: clients refuse it; renew it")],
)
def test_expiry_is_a_problem_two_weeks_before(issued, left_days, text):
    files = CertificateFiles(issued.cert, issued.key)
    expires_at = load_context(files).expires_at
    store = CertificateStore(files, unix_time=lambda: expires_at - left_days * 86400)
    day = time.strftime("%Y-%m-%d", time.gmtime(expires_at))
    assert store.expiry_problem() == (text and text.format(day=day))
    assert len(store.warnings()) == (text is not None)
