"""Clients and neurons of one gateway in memory that send and record bytes."""

from fakes.scripted import read_request

JSON = b'{"object":"chat.completion","choices":[]}'


async def raw_ask(gateway, *headers, body=b'{"model":"helexa/small"}', path="/v1/chat/completions", method="POST"):
    """Send a request with the test's own headers; return the answer, read to its end."""
    client = gateway.client()
    lines = [f"{method} {path} HTTP/1.1", "host: cortex", "connection: close", f"content-length: {len(body)}", *headers]
    await client.stream.send_all("\r\n".join([*lines, "", ""]).encode() + body)
    return await client.answer()


def recording(received, answer):
    """A neuron that keeps the requests it received."""

    async def peer(stream):
        received.append(await read_request(stream))
        await stream.send_all(answer)

    return peer
