"""An ASGI `send` callable that keeps its messages in a list."""

import trio


class RecordedSend:
    """While `blocked` is set, `send` waits for it. Once `disconnected`, `send` raises OSError."""

    def __init__(self):
        self.messages = []
        self.blocked = None
        self.disconnected = False

    async def send(self, message):
        await trio.lowlevel.checkpoint()
        if self.blocked is not None:
            await self.blocked.wait()
        if self.disconnected:
            raise OSError("the client has disconnected")
        self.messages.append(message)

    @property
    def body(self):
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def starts(self):
        return [message["status"] for message in self.messages if message["type"] == "http.response.start"]
