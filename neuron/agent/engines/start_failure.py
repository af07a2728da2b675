"""Why an engine did not start, read from its output. Pure.

The table has texts that llama.cpp's server, vLLM, SGLang, transformers, PyTorch, CUDA and the C library print.
"""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["StartFailure", "explain_start_failure"]

LINES_SHOWN = 12
_LINE_CHARACTERS = 300

_CAUSES: dict[str, tuple[str, ...]] = {
    "not enough free device memory: use a smaller model, quantization or context, or unload another model": (
        r"out of memory",
        r"cudaMalloc failed",
        r"CUDA_ERROR_OUT_OF_MEMORY",
        r"(failed|unable) to allocate .*buffer",
        r"No available memory for the cache blocks",
        r"less than desired GPU memory utilization",
        r"Not enough memory",
    ),
    "the port is in use by another process: change `ports` of the engine": (
        r"address already in use",
        r"couldn't bind",
        r"bind.* failed",
        r"errno 98\b",
    ),
    "the model is gated: accept its licence on the hub, and set HF_TOKEN in the engine's `env`": (
        r"gated repo",
        r"40[13] client error",
        r"access to model .* is restricted",
        r"must be authenticated",
        r"awaiting a review",
    ),
    "the engine rejects one of its arguments: correct `args` of the model or `command` of the engine": (
        r"unrecognized arguments?\b",
        r"(invalid|unknown|unexpected) argument",
        r"error: argument ",
        r"no such option",
    ),
    "the engine's program cannot be started: check the first word of `command`": (r"^cannot start .*: ",),
    "the engine's program lacks a Python module: install the engine, or name its own Python in `command`": (
        r"^(ModuleNotFoundError|ImportError): ",
        r": No module named ",
    ),
    "permission denied: the neuron's user may not read a file or use a device": (r"permission denied",),
    "a file or model was not found: check `source` of the model": (
        r"no such file or directory",
        r"failed to open",
        r"does not exist",
        r"is not a local folder",
        r"Can't load .* for",
        r"FileNotFoundError",
        r"RepositoryNotFoundError",
        r"LocalEntryNotFoundError",
    ),
    "the engine cannot read this model: check its format, and the engine's version": (
        r"invalid magic",
        r"unknown model architecture",
        r"are not supported for now",
        r"unrecognized configuration class",
    ),
    "no usable GPU was found": (
        r"no cuda gpus are available",
        r"CUDA driver version is insufficient",
        r"no CUDA-capable device",
    ),
}
_PATTERNS = tuple((re.compile("|".join(patterns), re.IGNORECASE), reason) for reason, patterns in _CAUSES.items())


class StartFailure(NamedTuple):
    """A failed start: the reason with what to do, and the last lines of the output."""

    reason: str
    lines: tuple[str, ...]

    def text(self) -> str:
        """As one message: the reason, then the lines."""
        return "\n".join((self.reason, *(f"  {line}" for line in self.lines)))


def explain_start_failure(output: bytes, exit_code: int | None) -> StartFailure:
    """Name the cause of a failed start.

    Args:
        output: What the engine printed in this run.
        exit_code: Its exit status, 128 + N after signal N; None if it still runs.
    """
    lines = [line.rstrip()[:_LINE_CHARACTERS] for line in output.decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line and not line.startswith("--- ")]
    cause = next((reason for line in reversed(lines) for pattern, reason in _PATTERNS if pattern.search(line)), None)
    return StartFailure(cause or _by_exit(exit_code), tuple(lines[-LINES_SHOWN:]))


def _by_exit(exit_code: int | None) -> str:
    if exit_code is None:
        return "the engine did not become ready in time"
    if exit_code == 137:
        return "the engine was killed (SIGKILL); often the kernel does that when the host runs out of memory"
    if exit_code > 128:
        return f"signal {exit_code - 128} ended the engine"
    return f"the engine exited with status {exit_code}"
