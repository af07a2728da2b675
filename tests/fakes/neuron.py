"""A neuron's control API in memory, as an httpx transport: no sockets, so tests may use the autojump clock.

It gives the answers that a test sets. `neuron.simulated` behaves like a real one (pace, memory, faults on the wire).
"""

from __future__ import annotations

import json
from urllib.parse import unquote

import httpx
import trio

ENDPOINT = "http://beast.lan:13131"


def gpu(index=0, *, total_mb=24_000, free_mb=20_000):
    """A device as `/discovery` and `/health` together describe it."""
    return {"index": index, "total_mb": total_mb, "free_mb": free_mb}


def model(model_id, status="loaded", **more):
    """An entry of `/models`."""
    return {"id": model_id, "harness": "vllm", "status": status, "devices": [0], "vram_used_mb": 4000} | more


GPU = gpu()


class FakeNeuron(httpx.AsyncBaseTransport):
    """Its answers follow its attributes.

    `calls` lists the requests in order, as `(trio time, "GET /path")`. `hanging` and `failing` are sets of paths: the
    first never answer, the second answer 500. `slow_s` maps a path to the duration of its answer, whose content is that
    of the time of the request. `unreachable` refuses every connection. `running` counts requests in progress.
    """

    def __init__(self, *models, devices=(GPU,), uptime_s=1000.0):
        self.models = list(models)
        self.devices = [dict(device) for device in devices]
        self.started_at = -uptime_s
        self.activation = None
        self.counters = []
        self.calls = []
        self.bodies = []
        self.hanging = set()
        self.failing = set()
        self.slow_s = {}
        self.overrides = {}
        self.unreachable = False
        self.running = 0
        self.inference_url = "http://localhost:8080"

    def request_times(self, path):
        """The times of the requests for `path`."""
        return [at for at, called in self.calls if called == f"GET {path}"]

    def restart(self):
        """Its uptime begins again."""
        self.started_at = trio.current_time()

    async def handle_async_request(self, request):
        path = request.url.raw_path.decode()
        self.calls.append((trio.current_time(), f"{request.method} {path}"))
        self.bodies.append(request.content if isinstance(request.stream, httpx.ByteStream) else b"")
        self.running += 1
        try:
            await trio.lowlevel.checkpoint()
            answer = self._answer(path)
            if path in self.hanging:
                await trio.sleep_forever()
            await trio.sleep(self.slow_s.get(path, 0))
        finally:
            self.running -= 1
        if self.unreachable:
            raise httpx.ConnectError("connection refused")
        return answer

    def _answer(self, path):
        if path in self.overrides:
            return self.overrides[path]()
        if path in self.failing:
            return httpx.Response(500, stream=httpx.ByteStream(b'{"error":"out of order"}'))
        if path.startswith("/models/") and path.endswith("/endpoint"):
            return self._endpoint(unquote(path.removeprefix("/models/").removesuffix("/endpoint")))
        bodies = {"/discovery": self._discovery, "/health": self._health, "/models": lambda: self.models}
        if path not in bodies:
            return answer(404, {"error": "no such path"})
        return answer(200, bodies[path]())

    def _endpoint(self, model_id):
        if any(entry["id"] == model_id and entry["status"] in ("loaded", "reloading") for entry in self.models):
            return answer(200, {"url": self.inference_url})
        return answer(404, {"error": f"model '{model_id}' not loaded"})

    def _discovery(self):
        devices = [
            {"index": d["index"], "name": "GPU", "vram_total_mb": d["total_mb"], "compute_capability": "8.9"}
            for d in self.devices
        ]
        return {"hostname": "beast", "os": "linux", "kernel": "6", "cuda_version": None, "devices": devices}

    def _health(self):
        readings = [
            {
                "index": d["index"],
                "vram_used_mb": d["total_mb"] - d["free_mb"],
                "vram_free_mb": d["free_mb"],
                "utilization_pct": 7,
                "temp_c": 40.5,
            }
            for d in self.devices
        ]
        body = {"uptime_secs": trio.current_time() - self.started_at, "devices": readings, "models": self.counters}
        return body if self.activation is None else body | {"activation": self.activation}


def answer(status, body):
    """A response whose bytes are still to be read, as from a network."""
    return httpx.Response(status, stream=httpx.ByteStream(json.dumps(body).encode()))
