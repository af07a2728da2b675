"""`cortex neuron init`: looks at this host for GPUs, engines and models, and writes a `neuron.toml` for them. Blocking.

It also writes the gateway's two files if it is asked to, for a host that runs both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from neuron.agent.devices.devices import Devices
from neuron.agent.engines.kinds import LLAMACPP_RUNNER, llamacpp_program, program_path

__all__ = ["FoundModel", "HostSurvey", "cortex_toml", "models_toml", "neuron_toml", "survey"]

MODELS_SHOWN = 50
FILES_EXAMINED = 20_000  # a home folder may have millions
_SHARD = re.compile(r"-(\d{5})-of-\d{5}$")
_NOT_MODELS = ("mmproj", "ggml-vocab")
_PREFERENCE = ("vllm", "sglang", "transformers")  # for weights in safetensors files, the fastest first


@dataclass(frozen=True, slots=True)
class FoundModel:
    """A model on this host: its id, what the engine loads, its size, and the kind of engine that can run it."""

    id: str
    source: str | None
    size_mb: int
    kind: str


@dataclass(frozen=True, slots=True)
class HostSurvey:
    """What was found. `engines` maps a kind to the program that was found; `skipped` are models without an engine."""

    devices: tuple[str, ...]
    engines: Mapping[str, str]
    models: tuple[FoundModel, ...]
    skipped: tuple[str, ...]


def survey(environ: Mapping[str, str], folders: Sequence[Path], devices: Devices) -> HostSurvey:
    """Look at the host.

    Args:
        environ: For PATH, HOME and the variables of Hugging Face.
        folders: Folders with model files, besides the usual ones.
        devices: The devices of this host.
    """
    engines = dict(_engines(environ.get("PATH", "")))
    home = Path(environ.get("HOME", "/root"))
    usual = [home / "models", Path("/srv/models"), home / ".cache/llama.cpp", home / ".lmstudio/models"]
    found = [*_gguf_models([*folders, *usual]), *_hub_models(_hub_cache(environ, home), engines)]
    models = {model.id: model for model in sorted(found, key=lambda model: model.size_mb, reverse=True)}
    usable = sorted((model for model in models.values() if model.kind in engines), key=lambda model: model.size_mb)
    return HostSurvey(
        tuple(f"{device.name}, {device.memory_total_mb} MB" for device in devices.infos),
        engines,
        tuple(usable[:MODELS_SHOWN]),
        tuple(sorted(model.id for model in models.values() if model.kind not in engines)),
    )


def _engines(path: str) -> Iterator[tuple[str, str]]:
    program = llamacpp_program(path)
    if LLAMACPP_RUNNER in program:
        yield "llamacpp", "the wheel xllamacpp"
    elif (found := program_path(program[0], path)) is not None:
        yield "llamacpp", found
    for kind, name in (("vllm", "vllm"), ("transformers", "transformers")):
        if (found := program_path(name, path)) is not None:
            yield kind, found
    if find_spec("sglang") is not None:
        yield "sglang", "the Python package sglang"


def _gguf_models(folders: Sequence[Path]) -> Iterator[FoundModel]:
    for folder in folders:
        for path in _files(folder, ".gguf"):
            shard = _SHARD.search(path.stem)
            if path.name.startswith(_NOT_MODELS) or (shard is not None and shard[1] != "00001"):
                continue
            yield FoundModel(_SHARD.sub("", path.stem), str(path.resolve()), _size_mb([path]), "llamacpp")


def _files(folder: Path, suffix: str) -> Iterator[Path]:
    """Files below a folder, symlinks to files included; as many as are examined in a second."""
    examined = 0
    waiting = [folder]
    while waiting and examined < FILES_EXAMINED:
        try:
            entries = sorted(waiting.pop().iterdir())
        except OSError:
            continue
        for entry in entries:
            examined += 1
            if entry.is_dir() and not entry.is_symlink():
                waiting.append(entry)
            elif entry.suffix == suffix and entry.is_file():
                yield entry


def _hub_cache(environ: Mapping[str, str], home: Path) -> Path:
    """https://huggingface.co/docs/huggingface_hub/package_reference/environment_variables."""
    if "HF_HUB_CACHE" in environ:
        return Path(environ["HF_HUB_CACHE"])
    return Path(environ.get("HF_HOME", home / ".cache/huggingface")) / "hub"


def _hub_models(cache: Path, engines: Mapping[str, str]) -> Iterator[FoundModel]:
    """Models of the Hugging Face cache: folders `models--org--name` with `snapshots/REVISION/`."""
    kind = next((kind for kind in _PREFERENCE if kind in engines), _PREFERENCE[0])
    for folder in sorted(cache.glob("models--*")):
        model_id = folder.name.removeprefix("models--").replace("--", "/")
        weights = list(_files(folder / "snapshots", ".safetensors"))
        if weights:
            yield FoundModel(model_id, None, _size_mb(weights), kind)
        yield from _gguf_models([folder / "snapshots"])


def _size_mb(paths: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in paths) // 2**20


# The files ............................................................................................................


def neuron_toml(found: HostSurvey) -> str:
    """A commented `neuron.toml` for what was found."""
    lines = [
        "# neuron.toml, written by `cortex neuron init`. `cortex neuron check` lists every fault of it.",
        "# Every key: neuron.example.toml. Devices of this host:",
        *(f"#   {device}" for device in found.devices),
        "",
        "[api]",
        '# listen = "0.0.0.0:13131"      # for gateways on other machines; needs a token',
        '# token = "…"                   # the gateway\'s [[neurons]] token',
        "",
    ]
    for kind, program in found.engines.items():
        lines += [f"[engines.{kind}]", f'kind = "{kind}"'.ljust(33) + f"# {program}", ""]
    if not found.engines:
        lines += _NO_ENGINE
    for model in found.models:
        lines += ["[[models]]", f"id = {_quoted(model.id)}", f'engine = "{model.kind}"']
        if model.source is not None:
            lines += [f"source = {_quoted(model.source)}"]
        if model.kind == "llamacpp":
            lines += [_CONTEXT]
        lines += [f"# vram_mb = {_estimate_mb(model)}".ljust(33) + "# default: measured at the first load", ""]
    if not found.models:
        lines += ["# [[models]]", '# id = "my-model"', '# engine = "llamacpp"', '# source = "/path/to/model.gguf"', ""]
    lines += [f"# Found, but no engine for it: {model_id}" for model_id in found.skipped]
    return "\n".join(lines).rstrip() + "\n"


# llama.cpp allocates the whole context at its start, and the context that models are trained for can be enormous.
_CONTEXT = "context = 16384                  # tokens; less needs less memory. Without it: all that the model knows"


def _estimate_mb(model: FoundModel) -> int:
    """The weights, a fifth for the context, and what any engine needs."""
    return model.size_mb * 6 // 5 + 500


_NO_ENGINE = [
    "# No engine was found. `pip install xllamacpp` runs GGUF files on any host; vLLM and SGLang need a GPU.",
    "# [engines.llamacpp]",
    '# kind = "llamacpp"',
    "",
]


def cortex_toml() -> str:
    """A `cortex.toml` for a gateway on the same host."""
    return (
        "# cortex.toml, written by `cortex neuron init --gateway`. Every key: cortex.example.toml.\n"
        'models_config = "models.toml"\n\n'
        '[[neurons]]\nname = "local"\nendpoint = "http://127.0.0.1:13131"\n'
    )


def models_toml(found: HostSurvey, alias: str) -> str:
    """A `models.toml` with every model, and an alias for the smallest."""
    lines = ["# models.toml, written by `cortex neuron init --gateway`. Every key: models.example.toml.", "[aliases]"]
    lines += [f"{_quoted(alias)} = {_quoted(found.models[0].id)}"] if found.models else []
    for model in found.models:
        lines += ["", "[[models]]", f"id = {_quoted(model.id)}", f'harness = "{model.kind}"']
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
