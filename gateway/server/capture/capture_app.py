"""An ASGI application around that of inference: while a capture runs, it keeps a copy of the bodies that pass."""

from __future__ import annotations

import time
from typing import Final

from gateway.asgi import EXCHANGE, App, Message, Receive, Scope, Send
from gateway.server.capture.capture import TEXT_BYTES, Capture, CapturedRequest, RunningCapture
from gateway.server.capture.captured_texts import answer_text, redacted, request_texts

__all__ = ["CaptureApp"]

_FORMS: Final = b"multipart/"


class CaptureApp:
    """Passes everything on. Without a capture, at the cost of one look-up.

    Args:
        inference: The application for the inference paths.
        capture: Whether one runs, and where texts are kept.
    """

    def __init__(self, inference: App, capture: Capture) -> None:
        self._inference = inference
        self._capture = capture

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        running = self._capture.running
        if running is None or dict(scope["headers"]).get(b"content-type", b"").startswith(_FORMS):
            await self._inference(scope, receive, send)
            return
        copy = _Copy(running, receive, send)
        # Without the server's exchange: its pump would send pieces that `send` does not see.
        extensions = {key: value for key, value in scope.get("extensions", {}).items() if key != EXCHANGE}
        try:
            await self._inference({**scope, "extensions": extensions}, copy.receive, copy.send)
        finally:
            copy.end()


class _Copy:
    """The bodies of one request, as far as they are kept."""

    __slots__ = (
        "_answer",
        "_at",
        "_body",
        "_headers",
        "_is_cut",
        "_receive",
        "_reserved",
        "_running",
        "_send",
        "_status",
    )

    def __init__(self, running: RunningCapture, receive: Receive, send: Send) -> None:
        self._running = running
        self._receive = receive
        self._send = send
        self._at = time.time()
        self._body = bytearray()
        self._answer = bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._status = 0
        self._reserved = 0
        self._is_cut = False

    async def receive(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._add(self._body, message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], dict(message["headers"])
        elif message.get("body") and self._is_wanted:
            self._add(self._answer, message["body"])
        await self._send(message)

    @property
    def _is_wanted(self) -> bool:
        return self._headers.get(b"x-cortex-alias") == self._running.header

    def _add(self, kept: bytearray, data: bytes) -> None:
        if self._running.is_over:
            self._body.clear()
            self._answer.clear()
            return
        part = data[: max(0, TEXT_BYTES - len(kept))]
        if not self._running.reserve(len(part)):
            part = b""
        self._is_cut = self._is_cut or len(part) < len(data)
        self._reserved += len(part)
        kept += part

    def end(self) -> None:
        """Keep the request if it was one of the alias, and the capture still runs."""
        self._running.give_back(self._reserved)
        if self._is_wanted and not self._running.is_over:
            self._running.keep(self._entry())
        self._body.clear()
        self._answer.clear()

    def _entry(self) -> CapturedRequest:
        headers = self._headers
        messages = request_texts(bytes(self._body))
        answer = answer_text(headers.get(b"content-type", b""), bytes(self._answer))
        if self._running.is_redacted:
            messages = [{**message, "text": redacted(message["text"])} for message in messages]
            answer = redacted(answer)
        return CapturedRequest(
            request_id=headers.get(b"x-request-id", b"").decode("latin-1"),
            at=self._at,
            alias=self._running.alias,
            model=_name(headers, b"x-cortex-model"),
            node=_name(headers, b"x-cortex-node"),
            status=self._status,
            messages=messages,
            answer=answer,
            is_cut=self._is_cut,
        )


def _name(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("utf-8", "replace")
