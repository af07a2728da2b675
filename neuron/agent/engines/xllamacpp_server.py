"""llama.cpp's HTTP server from the wheel `xllamacpp`, with the options of `llama-server` that most hosts need.

Run as `python -m neuron.agent.engines.xllamacpp_server --model FILE --port N …` where there is no llama-server.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="xllamacpp", description=__doc__, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-m", "--model", help="a GGUF file")
    source.add_argument("-hf", "--hf-repo", help="a repository of the Hugging Face hub, user/model[:quant]")
    parser.add_argument("-a", "--alias", help="the model's name in the API")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("-c", "--ctx-size", type=int, default=0, help="context over all slots; 0: the model's own")
    parser.add_argument("-np", "--parallel", type=int, default=1, help="number of requests at once")
    parser.add_argument("-t", "--threads", type=int, default=-1)
    parser.add_argument("-b", "--batch-size", type=int)
    parser.add_argument("-ub", "--ubatch-size", type=int)
    parser.add_argument("-ngl", "--n-gpu-layers", "--gpu-layers", type=int)
    parser.add_argument("--embedding", "--embeddings", action="store_true")
    parser.add_argument("--no-warmup", action="store_true")
    parser.add_argument("--metrics", action="store_true")
    parser.add_argument("--slots", action="store_true", help="on in any case")
    parser.add_argument("--jinja", action="store_true", help="on in any case")
    parser.add_argument("--chat-template", help="a Jinja template")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM. Returns 1 if the model cannot be served; the reason is in the output."""
    options = _parser().parse_args(arguments)
    import xllamacpp  # noqa: PLC0415 - `--help` and wrong arguments need no engine

    params = xllamacpp.CommonParams()
    if options.model:
        params.model.path = options.model
    else:
        repository, _, quant = options.hf_repo.partition(":")
        params.model.hf_repo = f"{repository}:{quant}" if quant else repository
    params.model_alias = {options.alias or options.model or options.hf_repo}
    params.hostnames = [options.host]
    params.port = options.port
    params.n_ctx = options.ctx_size
    params.n_parallel = options.parallel
    params.cpuparams.n_threads = options.threads
    params.warmup = not options.no_warmup
    params.endpoint_metrics = options.metrics
    params.embedding = options.embedding
    given = {"n_batch": options.batch_size, "n_ubatch": options.ubatch_size, "n_gpu_layers": options.n_gpu_layers}
    for name, value in (given | {"chat_template": options.chat_template}).items():
        if value is not None:
            setattr(params, name, value)
    try:
        server = xllamacpp.Server(params)
    except RuntimeError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    signal.pause()  # SIGTERM ends the process
    del server
    return 0


if __name__ == "__main__":
    sys.exit(main())
