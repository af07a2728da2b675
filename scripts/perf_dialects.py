"""Measure what translation costs: gateway CPU per upstream chunk, by dialect, interleaved in one run.

    scripts/perf_dialects.py      needs rustc; takes about a minute

The kit's mock upstream sends chat completion chunks; fifty clients read them unchanged and translated. Unlike
most engines, the mock sends no ids in its chunks; that is the same for every dialect.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import tempfile
from pathlib import Path

import trio
from perf_kit import CHUNKS, ROOT, build, cortex_command, cpu_s, free_ports, mock, need, one

ROUNDS, STREAMS = 5, 50
QUESTION = [{"role": "user", "content": "What is the capital of Georgia?"}]
DIALECTS = {
    "chat completions, passed through": (
        "/v1/chat/completions",
        {"model": "helexa/small", "stream": True, "messages": QUESTION},
        b"data: [DONE]",
    ),
    "Anthropic Messages, translated": (
        "/v1/messages",
        {"model": "helexa/small", "stream": True, "max_tokens": 1000, "messages": QUESTION},
        b"message_stop",
    ),
    "OpenAI Responses, translated": (
        "/v1/responses",
        {"model": "helexa/small", "stream": True, "input": QUESTION},
        b'"user":null}}',  # the last field that response.completed repeats
    ),
}


def main() -> None:
    """Build the mock, run the rounds, print the table."""
    need("rustc")
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        home = Path(folder)
        build(home, "mock")
        upstream = stack.enter_context(mock(home))
        port, metrics_port = free_ports(2)
        command = cortex_command(home / "cortex", port, metrics_port, upstream.port)
        gateway = stack.enter_context(one("cortex", port, command, ROOT)).pid
        cost_us: dict[str, list[float]] = {name: [] for name in DIALECTS}
        trio.run(until_ready, port)
        for _ in range(ROUNDS):
            for name, (path, body, end) in DIALECTS.items():
                before_s = cpu_s(gateway)
                trio.run(load, port, path, json.dumps(body).encode(), end)
                cost_us[name].append((cpu_s(gateway) - before_s) / (STREAMS * CHUNKS) * 1e6)
    print_table({name: statistics.median(values) for name, values in cost_us.items()})


async def until_ready(port: int) -> None:
    """Wait until the gateway knows its neuron."""
    for _ in range(100):
        with contextlib.suppress(OSError):
            async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                await stream.send_all(b"GET /ready HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                if b" 200 " in await stream.receive_some():
                    return
        await trio.sleep(0.1)
    raise SystemExit("the gateway does not start")


async def load(port: int, path: str, body: bytes, end: bytes) -> None:
    """Fifty streams at once, read as they arrive; ends the run if one ends incorrectly."""
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def read() -> None:
        tail = b""
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(head + body)
            while piece := await stream.receive_some(65536):
                tail = (tail + piece)[-200:]
        if end not in tail:
            raise SystemExit(f"a stream of {path} ended in {tail!r}")

    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(read)


def print_table(cost_us: dict[str, float]) -> None:
    """Markdown, the pass-through being 1."""
    plain = next(iter(cost_us.values()))
    print("| stream | CPU per chunk, us | ratio |\n|---|---|---|")
    for name, cost in cost_us.items():
        print(f"| {name} | {cost:.1f} | {cost / plain:.2f} |")


if __name__ == "__main__":
    main()
