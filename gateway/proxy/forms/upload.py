"""A form on its way through: read as far as its `model`, then kept or passed on. What a form is, `multipart` knows.

    read_until_model -> [wait for a route; the rest is kept meanwhile] -> outgoing, piece by piece

Two tasks share an upload: `run` reads what the client sends for as long as the request lasts, and an attempt takes what
its neuron is to get. Until one has taken all that was kept and asks for more, everything can be sent again.
"""

from __future__ import annotations

import trio

from gateway.asgi import Message, Receive
from gateway.errors import RequestTimeout, body_too_large
from gateway.http.sockets import RECEIVE_BYTES
from gateway.proxy.client_response import ClientGone
from gateway.proxy.forms.form_parser import FormReader, ModelPart
from gateway.proxy.forms.spool import MEMORY_BYTES, Spool

__all__ = ["OutgoingForm", "Upload"]

AHEAD_BYTES = MEMORY_BYTES - RECEIVE_BYTES  # read before anybody wants it: what is sure to need no file
STEP_BYTES = 16 * 1024  # what must come within the patience: less than any line brings, and yet 64 MiB have an end


class Upload:
    """One form. Whoever makes it closes the spool.

    Args:
        receive: ASGI's.
        reader: For the form's boundary.
        spool: Empty.
        length: Of the body in bytes, if its client said so.
        limit_bytes: Of the body.
        stall_timeout_s: For every `STEP_BYTES` of it to come.
    """

    def __init__(
        self,
        receive: Receive,
        reader: FormReader,
        spool: Spool,
        *,
        length: int | None,
        limit_bytes: int,
        stall_timeout_s: float,
    ) -> None:
        self._receive = receive
        self._reader = reader
        self._spool = spool
        self._limit_bytes = limit_bytes
        self._stall_timeout_s = self._stall_time_left_s = stall_timeout_s
        self._step_bytes = 0
        self._keep_all = False
        self._passing = False  # an attempt has taken what was kept: what comes now goes straight to it
        self._wanted = trio.Event()
        self._give, self._taken = trio.open_memory_channel[bytes](0)  # a rendezvous: backpressure to the client
        self.length = length
        self.received_bytes = 0
        self.ended = False  # the last of it is kept, or passed on

    @property
    def can_be_sent(self) -> bool:
        """Whether all of it is still to be had, so that an attempt may be made."""
        return not self._passing

    @property
    def stream(self) -> bool:
        """Whether the form, as far as it was read, asks for a stream."""
        return self._reader.stream

    @property
    def model(self) -> ModelPart:
        """Where the field is, once `read_until_model` has returned."""
        if self._reader.model is None:
            raise RuntimeError("the form's model is not known yet")
        return self._reader.model

    # The client's side ................................................................................................

    async def read_until_model(self) -> ModelPart:
        """Read as far as routing needs. All of it is kept: a file that stands before the field, on disk.

        Raises:
            RequestTimeout, BodyTooLarge, MalformedMultipart, MissingModelField: As the names say.
            Overloaded, ServiceUnavailable: There is no room to keep it.
            ClientGone: It left.
        """
        while self._reader.model is None:
            await self._read_piece()
        return self._reader.model

    async def run(self) -> None:
        """Read the rest; return when all of it is kept or passed on. Raises as `read_until_model` does.

        Before an attempt wants it, only a little is read ahead, or all after `keep_all`.
        """
        while not self.ended:
            if self._passing or self._keep_all or self._spool.size <= AHEAD_BYTES:
                await self._read_piece()
            else:
                await self._wanted.wait()
        self._give.close()  # not on the way out of an error: it would pass for the body's end

    def keep_all(self) -> None:
        """Nobody will want it for a while: read it to its end, so that the client's leaving can be seen behind it."""
        self._keep_all = True
        self._wanted.set()

    async def _read_piece(self) -> None:
        message = await self._next_message()
        piece: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        self._check(piece, is_last=is_last)
        if self._passing:
            if piece:
                await self._give.send(piece)
        else:
            await self._spool.write(piece)
        self.ended = is_last

    async def _next_message(self) -> Message:
        """Time runs only while it is the client who is waited for."""
        asked_at = trio.current_time()
        with trio.move_on_after(self._stall_time_left_s):
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            self._stall_time_left_s -= trio.current_time() - asked_at
            return message
        raise RequestTimeout(
            f"less than {STEP_BYTES // 1024} KiB of the upload arrived within {self._stall_timeout_s:g} s"
        )

    def _check(self, piece: bytes, *, is_last: bool) -> None:
        self.received_bytes += len(piece)
        if self.received_bytes > self._limit_bytes:
            raise body_too_large(self._limit_bytes)
        self._step_bytes += len(piece)
        if self._step_bytes >= STEP_BYTES:
            self._step_bytes = 0
            self._stall_time_left_s = self._stall_timeout_s
        self._reader.feed(piece)
        if is_last:
            self._reader.finish()

    # The neuron's side ................................................................................................

    def with_model(self, name: str) -> bytes | OutgoingForm:
        """The form with `name` as its model, for one attempt at a time, while `can_be_sent`.

        Bytes if all of it has arrived and is in memory, else a body that is streamed to the neuron.
        """
        kept = self._spool.in_memory() if self.ended else None
        if kept is None:
            return OutgoingForm(self, name)
        model = self.model
        return b"".join((kept[: model.start], name.encode(), kept[model.end :]))

    async def take(self, at: int) -> bytes:
        """Some of the body from `at` on, as soon as there is some; `b""` at its end.

        What is taken beyond what was kept is gone: there is one taker, and it takes everything in order.
        """
        if at < self._spool.size:
            return await self._spool.read(at)
        if self.ended:
            return b""
        self._passing = True
        self._wanted.set()
        try:
            return await self._taken.receive()
        except trio.EndOfChannel:
            return b""


class OutgoingForm:
    """What one neuron gets of an upload: the same bytes, but for the model's name. A `sending.Body`."""

    def __init__(self, upload: Upload, name: str) -> None:
        self._upload = upload
        self._name = name.encode()
        self._model = upload.model
        self._at = 0  # of the client's body
        longer_bytes = len(self._name) - (self._model.end - self._model.start)
        self.length = None if upload.length is None else upload.length + longer_bytes

    async def receive(self) -> bytes:
        """The next piece, when there is one; `b""` at the end."""
        if self._at == self._model.start:
            self._at = self._model.end
            return self._name
        piece = await self._upload.take(self._at)
        if self._at < self._model.start:
            piece = piece[: self._model.start - self._at]
        self._at += len(piece)
        return piece
