"""One request to an ASGI application, without a server."""

import trio


async def call(app, method, path, *headers, body=b"", arrives=True):
    """Send one request; return status, headers and body of the answer. Without `arrives` the body never ends."""
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.4"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"a"), *headers], "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2),
        "state": {}, "extensions": {},
    }  # fmt: skip
    inbox = [{"type": "http.request", "body": body, "more_body": not arrives}]
    sent = []

    async def receive():
        await trio.lowlevel.checkpoint()
        if not inbox:
            await trio.sleep_forever()
        return inbox.pop()

    async def send(message):
        await trio.lowlevel.checkpoint()
        sent.append(message)

    await app(scope, receive, send)
    answer = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], {name.lower(): value for name, value in sent[0]["headers"]}, answer
