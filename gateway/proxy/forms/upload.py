"""A form that is sent on while it arrives: read up to its `model`, then kept until a neuron takes it, or passed on.

    read_until_model -> [the request waits for a route; the rest is kept meanwhile] -> outgoing, piece by piece

Two tasks share an upload: `run` reads from the client for as long as the request lasts, and an attempt takes what its
neuron is to receive. Until an attempt has taken all that was kept and asks for more, all of it can be sent again.
"""

from __future__ import annotations

import trio

from gateway.asgi import Message, Receive
from gateway.errors import body_too_large
from gateway.http.sockets import RECEIVE_BYTES
from gateway.proxy.body.progress import STEP_BYTES, stalled
from gateway.proxy.forms.form_parser import FormParser, ModelPart
from gateway.proxy.forms.spool import MEMORY_BYTES, Spool
from gateway.proxy.response.client_response import ClientGone

__all__ = ["OutgoingForm", "Upload"]

AHEAD_BYTES = MEMORY_BYTES - RECEIVE_BYTES  # read before an attempt takes any: this much never needs a file


class Upload:
    """One form. The creator closes the spool.

    Args:
        receive: ASGI's.
        parser: For the form's boundary.
        spool: Empty.
        length: The body's content-length; None if it is chunked.
        limit_bytes: Of the body.
        stall_timeout_s: The time in which each `STEP_BYTES` of the body must arrive.
    """

    def __init__(
        self,
        receive: Receive,
        parser: FormParser,
        spool: Spool,
        *,
        length: int | None,
        limit_bytes: int,
        stall_timeout_s: float,
    ) -> None:
        self._receive = receive
        self._parser = parser
        self._spool = spool
        self._limit_bytes = limit_bytes
        self._stall_timeout_s = self._stall_time_left_s = stall_timeout_s
        self._step_bytes = 0
        self._keep_all = False
        self._passing_on = False  # an attempt has taken what was kept: the next bytes go directly to it
        self._wanted = trio.Event()
        self._give, self._taken = trio.open_memory_channel[bytes](0)  # unbuffered: backpressure to the client
        self.length = length
        self.received_bytes = 0
        self.ended = False  # the last byte is kept or passed on

    @property
    def can_be_sent(self) -> bool:
        """Whether the whole form is still available, so that an attempt can send it."""
        return not self._passing_on

    @property
    def stream(self) -> bool:
        """Whether the form, as far as it has been read, asks for a stream."""
        return self._parser.stream

    @property
    def model(self) -> ModelPart:
        """The field `model`; available after `read_until_model`."""
        if self._parser.model is None:
            raise RuntimeError("the form's model is not known yet")
        return self._parser.model

    # From the client ..................................................................................................

    async def read_until_model(self) -> ModelPart:
        """Read up to the end of the field `model`. All bytes are kept; a file before that field goes to disk.

        Raises:
            RequestTimeout, BodyTooLarge, MalformedMultipart, MissingModelField: As the names say.
            Overloaded, ServiceUnavailable: The bytes cannot be kept.
            ClientGone: The client has disconnected.
        """
        while self._parser.model is None:
            await self._read_piece()
        return self._parser.model

    async def run(self) -> None:
        """Read the rest; return when all of it is kept or passed on. Raises as `read_until_model` does.

        Until an attempt asks for more, only `AHEAD_BYTES` are read, or everything after `keep_all`.
        """
        while not self.ended:
            if self._passing_on or self._keep_all or self._spool.size <= AHEAD_BYTES:
                await self._read_piece()
            else:
                await self._wanted.wait()
        self._give.close()  # not in a `finally`: after an error, the taker must not see the end of the body

    def keep_all(self) -> None:
        """Read the form to its end, because no attempt will take it soon.

        The client's disconnect can only be noticed after the last byte.
        """
        self._keep_all = True
        self._wanted.set()

    async def _read_piece(self) -> None:
        message = await self._next_message()
        piece: bytes = message.get("body", b"")
        is_last = not message.get("more_body", False)
        self._check(piece, is_last=is_last)
        if self._passing_on:
            if piece:
                await self._give.send(piece)
        else:
            await self._spool.write(piece)
        self.ended = is_last

    async def _next_message(self) -> Message:
        """Wait for the client. Only this waiting counts towards `stall_timeout_s`, not the neuron's."""
        asked_at = trio.current_time()
        with trio.move_on_after(self._stall_time_left_s):
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            self._stall_time_left_s -= trio.current_time() - asked_at
            return message
        raise stalled(self._stall_timeout_s)

    def _check(self, piece: bytes, *, is_last: bool) -> None:
        self.received_bytes += len(piece)
        if self.received_bytes > self._limit_bytes:
            raise body_too_large(self._limit_bytes)
        self._step_bytes += len(piece)
        if self._step_bytes >= STEP_BYTES:
            self._step_bytes = 0
            self._stall_time_left_s = self._stall_timeout_s
        self._parser.feed(piece)
        if is_last:
            self._parser.finish()

    # To the neuron ....................................................................................................

    def with_model(self, name: str) -> bytes | OutgoingForm:
        """Return the body with `name` as its model, for one attempt at a time, while `can_be_sent`.

        Bytes if all of it has arrived and is in memory; otherwise a body that is sent while it arrives.
        """
        kept = self._spool.in_memory() if self.ended else None
        if kept is None:
            return OutgoingForm(self, name)
        model = self.model
        return b"".join((kept[: model.start], name.encode(), kept[model.end :]))

    async def take(self, offset: int) -> bytes:
        """Wait for bytes of the body from `offset` on; `b""` at its end.

        Bytes beyond those that were kept can be taken once only, in order, by one taker.
        """
        if offset < self._spool.size:
            return await self._spool.read(offset)
        if self.ended:
            return b""
        self._passing_on = True
        self._wanted.set()
        try:
            return await self._taken.receive()
        except trio.EndOfChannel:
            return b""


class OutgoingForm:
    """The form as one neuron receives it: the same bytes, except for the model's name. A `StreamedBody`."""

    def __init__(self, upload: Upload, name: str) -> None:
        self._upload = upload
        self._name = name.encode()
        self._model = upload.model
        self._offset = 0  # in the client's body
        longer_bytes = len(self._name) - (self._model.end - self._model.start)
        self.length = None if upload.length is None else upload.length + longer_bytes

    def rewind(self) -> bool:
        """Begin again at the first byte. False if a part of the form was passed on and is gone."""
        self._offset = 0
        return self._upload.can_be_sent

    async def receive(self) -> bytes:
        """Wait for the next piece; `b""` at the end."""
        if self._offset == self._model.start:
            self._offset = self._model.end
            return self._name
        piece = await self._upload.take(self._offset)
        if self._offset < self._model.start:
            piece = piece[: self._model.start - self._offset]
        self._offset += len(piece)
        return piece
