"""The gateway that most people write first: a Quart route that forwards with httpx. The baseline to beat.

python scripts/bench/naive.py PORT UPSTREAM_PORT
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator

import httpx
import hypercorn
import hypercorn.trio
import trio
from quart import Response, request
from quart_trio import QuartTrio

ALIASES = {"helexa/small": "Qwen/Qwen3-1.7B"}


def make_app(upstream: str) -> QuartTrio:
    """A Quart application that forwards chat completions to `upstream`, a base URL."""
    app = QuartTrio(__name__)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=1000)
    client = httpx.AsyncClient(limits=limits, timeout=None)  # noqa: S113 - answers take as long as they take

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        body = json.loads(await request.get_data())
        body["model"] = ALIASES.get(body["model"], body["model"])
        headers = {"content-type": "application/json"}
        url = f"{upstream}/v1/chat/completions"
        outgoing = client.build_request("POST", url, content=json.dumps(body), headers=headers)
        answer = await client.send(outgoing, stream=True)

        async def chunks() -> AsyncIterator[bytes]:
            try:
                async for chunk in answer.aiter_raw():
                    yield chunk
            finally:
                await answer.aclose()

        return Response(chunks(), status=answer.status_code, headers={"content-type": answer.headers["content-type"]})

    return app


if __name__ == "__main__":
    config = hypercorn.Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    trio.run(hypercorn.trio.serve, make_app(f"http://127.0.0.1:{sys.argv[2]}"), config)
