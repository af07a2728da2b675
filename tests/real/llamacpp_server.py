"""llama.cpp's own HTTP server as a program: `llamacpp_server.py MODEL KEY chat|embeddings`.

Prints its base URL once it listens on a free loopback port, and ends when its standard input does, so that it cannot
outlive the test that started it.
"""

from __future__ import annotations

import sys

import xllamacpp

PARALLEL = 2
CONTEXT = 65536  # over all slots


def main(model: str, key: str, what: str) -> None:
    """Serve until standard input ends."""
    params = xllamacpp.CommonParams()
    params.model.path = model
    params.model_alias = {"tiny"}
    params.api_keys = [key]
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.n_parallel = PARALLEL
    params.n_ctx = CONTEXT
    params.cpuparams.n_threads = 1
    params.warmup = False
    if what == "embeddings":
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    server = xllamacpp.Server(params)
    print(f"listening {server.listening_address}", flush=True)  # noqa: T201 - what the test waits for
    sys.stdin.read()


main(*sys.argv[1:])
