"""The engines that the neuron knows: their commands, their paths, the dialects they speak. Facts only.

Sources: the `--help` of llama-server, `vllm serve`, `python -m sglang.launch_server` and `transformers serve`.
"""

from __future__ import annotations

import importlib.util
import shutil
import sys
from dataclasses import dataclass

from neuron.agent.config.settings import EngineKind

__all__ = ["EngineTraits", "llamacpp_program", "program_path", "search_path", "traits_of"]

LLAMACPP_RUNNER = "neuron.agent.engines.xllamacpp_server"


@dataclass(frozen=True, slots=True)
class EngineTraits:
    """What follows from an engine's kind.

    Args:
        command: The template for a model whose source is a hub id.
        command_for_path: The template for a model in a file or folder; None: the same.
        ready: The path that answers 200 once the engine can serve.
        dialects: What it speaks: OpenAI's API, Anthropic's `/v1/messages`, OpenAI's `/v1/responses`.
        sleep_command: Further arguments for a model that may sleep.
        sleep_env: Further environment variables for a model that may sleep.
    """

    command: tuple[str, ...]
    command_for_path: tuple[str, ...] | None = None
    ready: str = "/health"
    dialects: tuple[str, ...] = ("openai",)
    sleep_command: tuple[str, ...] = ()
    sleep_env: tuple[tuple[str, str], ...] = ()


_HOST_AND_PORT = ("--host", "{host}", "--port", "{port}")
_LLAMACPP = (*_HOST_AND_PORT, "--alias", "{model_id}", "--ctx-size", "{context}", "--metrics", "--slots")
_LLAMA_SERVER = "llama-server"

_TRAITS: dict[EngineKind, EngineTraits] = {
    "llamacpp": EngineTraits(
        (_LLAMA_SERVER, "-hf", "{source}", *_LLAMACPP),
        (_LLAMA_SERVER, "--model", "{source}", *_LLAMACPP),
        dialects=("openai", "anthropic", "responses"),
    ),
    "vllm": EngineTraits(
        (
            "vllm", "serve", "{source}", *_HOST_AND_PORT, "--served-model-name", "{model_id}",
            "--tensor-parallel-size", "{tensor_parallel}", "--max-model-len", "{context}", "--quantization", "{quant}",
        ),
        dialects=("openai", "anthropic", "responses"),
        sleep_command=("--enable-sleep-mode",),
        sleep_env=(("VLLM_SERVER_DEV_MODE", "1"),),
    ),
    "sglang": EngineTraits(
        (
            "python3", "-m", "sglang.launch_server", "--model-path", "{source}", *_HOST_AND_PORT,
            "--served-model-name", "{model_id}", "--tp-size", "{tensor_parallel}", "--context-length", "{context}",
            "--quantization", "{quant}", "--enable-metrics",
        ),
    ),
    "transformers": EngineTraits(("transformers", "serve", "{source}", *_HOST_AND_PORT)),
    "openai": EngineTraits((), ready="/v1/models"),
}  # fmt: skip


def traits_of(kind: EngineKind) -> EngineTraits:
    """The facts about a kind of engine."""
    return _TRAITS[kind]


def search_path(path: str) -> str:
    """PATH with the folder of this Python at its end: engines installed beside cortex are found without activation."""
    own = str(sys.executable).rpartition("/")[0]
    return f"{path}:{own}" if path else own


def program_path(name: str, path: str) -> str | None:
    """Where the program of a command is, or None."""
    return shutil.which(name, path=search_path(path))


def llamacpp_program(path: str) -> tuple[str, ...]:
    """llama-server from PATH, else our runner for the wheel `xllamacpp`, if that is installed."""
    if program_path(_LLAMA_SERVER, path) is None and importlib.util.find_spec("xllamacpp") is not None:
        return (sys.executable, "-m", LLAMACPP_RUNNER)
    return (_LLAMA_SERVER,)
