"""Many keys, streams and small requests at once: the ledger equals what the clients counted, to the token.

`CORTEX_LOAD=full` makes it 200 keys, 50 streams at a time and 20,000 small requests, instead of a tenth.
"""

import json
import os
import random
import sys
import time
from collections import Counter
from functools import partial
from itertools import count

import pytest
import trio
from fakes.keys import new_key
from fakes.patience import SAFETY_NET_S, until
from fakes.running import running_gateway, settled

from gateway.access.ledger.usage_report import UsageQuery, read_usage_report
from gateway.config.settings import AccessSettings, GatewaySettings, Listen, NeuronSettings

FULL = os.environ.get("CORTEX_LOAD") == "full"
KEYS, STREAMS, CLIENTS, REQUESTS = (200, 50, 32, 20_000) if FULL else (20, 5, 8, 1_500)
_ANY_PORT = Listen("127.0.0.1", 0)
MODELS = '[aliases]\ntier = "m"\n'
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n"


class FastEngine:
    """An engine that answers at once; each answer has another usage."""

    def __init__(self):
        self._numbers = count(1)

    async def serve(self, *, task_status=trio.TASK_STATUS_IGNORED):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, self._connection, 0, host="127.0.0.1"))
            task_status.started(f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}")

    async def _connection(self, stream):
        buffer = b""
        while True:
            while b"\r\n\r\n" not in buffer:
                data = await stream.receive_some(65536)
                if not data:
                    return
                buffer += data
            head, _, buffer = buffer.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            while len(buffer) < length:
                buffer += await stream.receive_some(65536)
            body, buffer = buffer[:length], buffer[length:]
            await self._answer(stream, json.loads(body or b"{}"))

    async def _answer(self, stream, body):
        number = next(self._numbers)
        usage = {"prompt_tokens": number % 97, "completion_tokens": 10 + number % 89}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "yes"}
            data = json.dumps({"choices": [{"index": 0, "message": message}], "usage": usage}).encode()
            await stream.send_all(HEAD % (b"application/json", len(data)) + data)
            return
        deltas = [{"choices": [{"index": 0, "delta": {"content": f" {word}"}}]} for word in range(10)]
        end = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        chunks = [*deltas, end, {"choices": [], "usage": usage}]
        events = [b"data: %b\n\n" % json.dumps(chunk).encode() for chunk in chunks] + [b"data: [DONE]\n\n"]
        await stream.send_all(HEAD % (b"text/event-stream", sum(map(len, events))))
        for event in events:
            await stream.send_all(event)
            await trio.sleep(0.002)


class LoadClient:
    """One connection. Counts the usage in every answer for its key."""

    def __init__(self, port, counted):
        self._port = port
        self._counted = counted
        self._stream = None

    async def ask(self, name, secret, *, stream):
        if self._stream is None:
            self._stream = await trio.open_tcp_stream("127.0.0.1", self._port)
        more = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
        body = json.dumps({"model": "tier", "messages": [{"role": "user", "content": "hi"}], **more}).encode()
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {secret}\r\n"
        await self._stream.send_all(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        answer = b""
        while not (answer.endswith(b"0\r\n\r\n") if stream else self._is_whole(answer)):
            data = await self._stream.receive_some(65536)
            assert data, answer
            answer += data
        assert answer.startswith(b"HTTP/1.1 200"), answer
        usage = json.loads(answer[answer.rindex(b'"usage": ') + 9 :].partition(b"}")[0] + b"}")
        self._counted[name, "requests"] += 1
        for tokens in ("prompt_tokens", "completion_tokens"):
            self._counted[name, tokens] += usage[tokens]

    def _is_whole(self, answer):
        head, separator, body = answer.partition(b"\r\n\r\n")
        return bool(separator) and len(body) >= int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])

    async def aclose(self):
        if self._stream is not None:
            await self._stream.aclose()


@pytest.mark.slow
async def test_the_ledger_equals_what_the_clients_counted(tmp_path, nursery):
    url = await nursery.start(FastEngine().serve)
    engine = NeuronSettings("engine", url, kind="openai", models=("m",))
    more = {
        "access": AccessSettings(mode="keys"),
        "gateway": GatewaySettings(listen=_ANY_PORT, metrics_listen=_ANY_PORT, access_log=False),
    }
    async with running_gateway(tmp_path, [], models_toml=MODELS, backends=(engine,), **more) as running:
        limits = {"rpm": 10**6, "tpm": 10**9, "concurrency": 1000, "budgets": ["tokens 1G/month"]}
        secrets = {name: await new_key(running.gateway, name, **limits) for name in (f"key {n}" for n in range(KEYS))}
        await until(running.gateway.fleet.any_open)
        counted, chance, left, small_done = Counter(), random.Random(5), count(REQUESTS, -1), trio.Event()  # noqa: S311

        async def small():
            client = LoadClient(running.port, counted)
            while next(left) > 0:
                await client.ask(*chance.choice(list(secrets.items())), stream=False)
            await client.aclose()

        async def streams():
            client = LoadClient(running.port, counted)
            while not small_done.is_set():
                await client.ask(*chance.choice(list(secrets.items())), stream=True)
            await client.aclose()

        began = time.perf_counter()
        async with trio.open_nursery() as load:
            for _ in range(STREAMS):
                load.start_soon(streams)
            async with trio.open_nursery() as requests:
                for _ in range(CLIENTS):
                    requests.start_soon(small)
            took_s = time.perf_counter() - began
            small_done.set()
        await settled(running.gateway)
        with trio.fail_after(SAFETY_NET_S):
            await until(lambda: not running.gateway.usage_parts.ledger._waiting)
        query = UsageQuery("key", 0.0, time.time())
        rows = await running.gateway.access_parts.store.read(partial(read_usage_report, query=query))
        limiter = running.gateway.usage_parts.limiter
        assert limiter.live == 0
        columns = ("requests", "prompt_tokens", "completion_tokens")
        assert {(row.name, column): getattr(row, column) for row in rows for column in columns} == dict(counted)
        total = sum(tokens for (_, column), tokens in counted.items() if column != "requests")
        await until(lambda: sum(use.budgets[0].spent(time.time()) for use in limiter.uses()) == total)
        requests = sum(row.requests for row in rows)
        sys.stdout.write(f"{requests} requests, {total} tokens, {REQUESTS / took_s:.0f} small ones per second\n")
