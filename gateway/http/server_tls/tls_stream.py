"""The server's side of TLS over one TCP connection.

Not `trio.SSLStream`: that cannot send `close_notify` and go on reading, and it cannot close without waiting. Both are
needed so that a client can tell a complete response from one that was cut off.
"""

from __future__ import annotations

import os
import ssl
from contextlib import suppress

import trio

from gateway.http.tcp.plain_stream import PlainStream

__all__ = ["HandshakeFailed", "TlsStream"]

RECEIVE_BYTES = 65536
ENCRYPT_BYTES = 65536  # at a time; more would only wait in memory until the socket takes it


class HandshakeFailed(Exception):
    """The client cannot be talked to. The text is OpenSSL's reason, or why the connection ended.

    Attributes:
        is_plain_http: The client speaks HTTP without TLS.
    """

    def __init__(self, reason: str, *, is_plain_http: bool = False) -> None:
        super().__init__(reason)
        self.is_plain_http = is_plain_http


class TlsStream(trio.abc.Stream):
    """A stream of decrypted bytes. Call `do_handshake` first. One task may read while another one writes.

    Args:
        transport: The TCP connection, which this stream closes.
        context: The server's certificate, and which clients it accepts.

    Attributes:
        transport_stream: The TCP connection.
        abortive: Close without `close_notify`, so that the client sees that the response is not complete.
    """

    def __init__(self, transport: PlainStream, context: ssl.SSLContext) -> None:
        self.transport_stream = transport
        self.abortive = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._unsent = bytearray()  # encrypted; what a cancelled send has left is sent by the next one
        self._sending = trio.Lock()

    async def do_handshake(self) -> None:
        """Agree on keys, and check the client's certificate if the context demands one.

        Raises:
            HandshakeFailed: The client has been sent an alert, if it still reads.
        """
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_encrypted(HandshakeFailed)
                await self._receive_encrypted(HandshakeFailed)
            except ssl.SSLError as error:
                self._send_now()
                raise HandshakeFailed(_words(error), is_plain_http=error.reason == "HTTP_REQUEST") from error
            else:
                await self._send_encrypted(HandshakeFailed)
                return

    @property
    def has_buffered(self) -> bool:
        """Whether bytes were received that `receive_some` has not returned yet."""
        return self._incoming.pending > 0 or self._tls.pending() > 0

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next bytes; `b""` after the client's `close_notify` or the end of its connection.

        Always a checkpoint. Cancelling this loses no bytes.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        limit = max_bytes or RECEIVE_BYTES
        has_waited = False
        while (data := self._read(limit)) is None:
            if not self._sending.locked():  # a task that sends takes what is there along
                await self._send_encrypted(trio.BrokenResourceError)
            await self._receive_encrypted(None)
            has_waited = True
        if not has_waited:
            await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    def _read(self, limit: int) -> bytes | None:
        """Decrypt as many records as there are, up to `limit` bytes; None if there is none."""
        found = bytearray()
        try:
            while len(found) < limit and (data := self._tls.read(limit - len(found))):
                found += data
        except ssl.SSLWantReadError:
            return bytes(found) if found else None
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            pass  # HTTP's framing tells whether a message was complete
        except ssl.SSLError as error:
            if not found:
                raise trio.BrokenResourceError(_words(error)) from error
        return bytes(found)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send. If this is cancelled, part of `data` may be sent."""
        view = memoryview(data)
        while view:
            try:
                taken = self._tls.write(view[:ENCRYPT_BYTES])
            except ssl.SSLError as error:
                raise trio.BrokenResourceError(_words(error)) from error
            view = view[taken:]
            await self._send_encrypted(trio.BrokenResourceError)

    async def wait_send_all_might_not_block(self) -> None:
        """As in `trio.abc.SendStream`."""
        await self.transport_stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """Send `close_notify`, and close the sending side of the connection. The client may still send."""
        self._write_close_notify()
        await self._send_encrypted(trio.BrokenResourceError)
        await self.transport_stream.send_eof()

    async def aclose(self) -> None:
        """As `close_now`."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def close_now(self) -> None:
        """Send `close_notify` if the socket takes it at once, and close. Sync, so that it cannot be cancelled."""
        if self.transport_stream.socket.fileno() != -1 and not self.abortive and not self._sending.locked():
            self._write_close_notify()
            self._send_now()
        self.transport_stream.close()

    def _write_close_notify(self) -> None:
        with suppress(ssl.SSLError, ValueError):  # SSLWantReadError: the client has not sent its own yet
            self._tls.unwrap()

    def _send_now(self) -> None:
        """Send what is encrypted, as far as the socket takes it without waiting."""
        self._unsent += self._outgoing.read()
        if self._unsent:
            with suppress(OSError):
                del self._unsent[: os.write(self.transport_stream.socket.fileno(), self._unsent)]

    async def _send_encrypted(self, failure: type[Exception]) -> None:
        """Send everything that is encrypted, in order."""
        if not self._unsent and not self._outgoing.pending:
            return
        async with self._sending:
            while True:
                self._unsent += self._outgoing.read()
                if not self._unsent:
                    return
                try:
                    sent = await self.transport_stream.send_some(bytes(self._unsent[:ENCRYPT_BYTES]))
                except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                    raise failure("the client has closed the connection") from error
                del self._unsent[:sent]

    async def _receive_encrypted(self, failure: type[Exception] | None) -> None:
        """Receive more; the end of the connection is passed on, or raised as `failure` if that is given."""
        try:
            data = await self.transport_stream.receive_some(RECEIVE_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if data:
            self._incoming.write(data)
        elif failure is not None:
            raise failure("the client has closed the connection")
        else:
            self._incoming.write_eof()


def _words(error: ssl.SSLError) -> str:
    """OpenSSL's name of an error, such as WRONG_VERSION_NUMBER, in words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    return (error.reason or "protocol error").lower().replace("_", " ")
