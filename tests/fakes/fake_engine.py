"""An inference engine that behaves as its options say: `fake_engine.py --port N --name MODEL …`. Standard library only.

It answers /health, /v1/models, /slots, /metrics and chat completions, streamed or not: one token per `--token-seconds`.
With `--enable-sleep-mode` and VLLM_SERVER_DEV_MODE=1 it sleeps and wakes as vLLM does, and refuses any other sequence.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

OPTIONS = argparse.ArgumentParser()
OPTIONS.add_argument("--host", default="127.0.0.1")
OPTIONS.add_argument("--port", type=int, required=True)
OPTIONS.add_argument("--name", required=True)
OPTIONS.add_argument("--serves", help="the name in /v1/models, if it is another one")
OPTIONS.add_argument("--ready-after", type=float, default=0.0)
OPTIONS.add_argument("--fails", help="print this and exit with 1")
OPTIONS.add_argument("--token-seconds", type=float, default=0.0)
OPTIONS.add_argument("--ignore-sigterm", action="store_true")
OPTIONS.add_argument("--enable-sleep-mode", action="store_true")
OPTIONS.add_argument("--escaped-child", action="store_true", help="start a child in a session of its own")


LEVEL_2 = ["/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
SEQUENCES = (["/sleep?level=1", "/wake_up"], LEVEL_2)


class Server(ThreadingHTTPServer):
    """Counts what is in flight."""

    daemon_threads = True
    options: argparse.Namespace
    ready_at: float
    in_flight = 0
    sleep_calls: list[str]
    lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *_: object) -> None:
        """Say nothing: requests are not the engine's output."""

    def do_GET(self) -> None:
        """Health, models, load."""
        ready = time.monotonic() >= self.server.ready_at
        name = self.server.options.serves or self.server.options.name
        answers = {
            "/health": {"status": "ok" if ready else "loading"},
            "/v1/models": {"data": [{"id": name, "meta": {"n_ctx": 4096}}]},
            "/metrics": f"vllm:num_requests_running {self.server.in_flight}\nvllm:num_requests_waiting 0\n",
            "/slots": [{"id": n, "is_processing": n < self.server.in_flight} for n in range(8)],
        }
        if self.path not in answers:
            self.answer(404, {"error": "no such path"})
        else:
            self.answer(200 if ready else 503, answers[self.path])

    def do_POST(self) -> None:
        """A chat completion with as many tokens as `max_tokens` says, or a call of the sleep mode."""
        content = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path.startswith(("/sleep", "/wake_up", "/collective_rpc")):
            self.answer(200 if self.server.options.enable_sleep_mode and self.sleeps() else 400, {})
            return
        if self.server.sleep_calls:
            self.answer(500, {"error": {"message": "asleep"}})
            return
        body = json.loads(content)
        if body["model"] != (self.server.options.serves or self.server.options.name):
            self.answer(400, {"error": {"message": f"unknown model {body['model']}"}})
            return
        with self.server.lock:
            self.server.in_flight += 1
        try:
            self.complete(body)
        except OSError:
            self.close_connection = True
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def sleeps(self) -> bool:
        """Take one call of a sequence; False if it is out of order."""
        calls = [*self.server.sleep_calls, self.path]
        if os.environ.get("VLLM_SERVER_DEV_MODE") != "1" or all(known[: len(calls)] != calls for known in SEQUENCES):
            return False
        self.server.sleep_calls = [] if calls in SEQUENCES else calls
        return True

    def complete(self, body: dict[str, object]) -> None:
        """Write the tokens."""
        count = int(str(body.get("max_tokens", 3)))
        if not body.get("stream"):
            time.sleep(count * self.server.options.token_seconds)
            message = {"role": "assistant", "content": "token " * count}
            self.answer(200, {"choices": [{"index": 0, "message": message}], "seen": dict(self.headers)})
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for number in range(count):
            time.sleep(self.server.options.token_seconds)
            delta = {"choices": [{"index": 0, "delta": {"content": f"{number} "}}]}
            self.chunk(f"data: {json.dumps(delta)}\n\n".encode())
        self.chunk(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, data: bytes) -> None:
        """One chunk of a chunked body."""
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def answer(self, status: int, body: object) -> None:
        """A JSON response, or text."""
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "text/plain" if isinstance(body, str) else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def main() -> None:
    """Serve until SIGTERM."""
    options = OPTIONS.parse_args()
    print(f"engine {os.getpid()} serves {options.name}", flush=True)  # noqa: T201 - its output
    if options.fails:
        print(options.fails, flush=True)  # noqa: T201 - as above
        sys.exit(1)
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.escaped_child:
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    server = Server((options.host, options.port), Handler)
    server.options = options
    server.sleep_calls = []
    server.ready_at = time.monotonic() + options.ready_after
    server.serve_forever()


if __name__ == "__main__":
    main()
