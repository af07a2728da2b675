"""Uploads through a gateway in memory: a form that a test sends in pieces, and the neuron that gets it."""

import trio
from fakes.forms import BOUNDARY, CONTENT_TYPE, a_part
from fakes.scripted import with_length

TRANSCRIPTIONS = "/v1/audio/transcriptions"
ANSWER = with_length(b'{"text":"Tbilisi"}')
ALIAS = a_part(b"model", b"helexa/small")


class Neuron:
    """Reads up to `until`, then sends `answer`, or closes if that is None. `received` is what it has read."""

    def __init__(self, answer=ANSWER, until=b"--" + BOUNDARY + b"--\r\n"):
        self.answer = answer
        self.until = until
        self.received = b""
        self.requests = 0
        self.closed = trio.Event()

    async def __call__(self, stream):
        self.requests += 1
        received = b""
        while not received.endswith(self.until) or not received:
            piece = bytes(await stream.receive_some(65_536))
            if not piece:
                break
            received += piece
            self.received = received
        else:
            if self.answer is not None:
                await stream.send_all(self.answer)
                while await stream.receive_some(65_536):
                    pass
        self.closed.set()
        await stream.aclose()

    @property
    def head(self):
        return self.received.partition(b"\r\n\r\n")[0].decode()

    @property
    def body(self):
        return self.received.partition(b"\r\n\r\n")[2]


def head(length=None, *more):
    """Return the head of an upload; chunked without a length. `more` are further header lines."""
    framing = b"transfer-encoding: chunked" if length is None else b"content-length: %d" % length
    lines = [b"POST %b HTTP/1.1" % TRANSCRIPTIONS.encode(), b"host: cortex", b"connection: close", framing]
    return b"\r\n".join([*lines, b"content-type: " + CONTENT_TYPE, *more, b"", b""])


def a_chunk(data):
    return b"%x\r\n%b\r\n" % (len(data), data)


async def upload(gateway, body):
    """Send a form at once; return the response."""
    client = gateway.client()
    await client.stream.send_all(head(len(body)) + body)
    return await client.answer()
