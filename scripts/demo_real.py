"""A neuron with llama.cpp's engine and two small models, with memory for one of them, and a gateway. See scripts/demo.

--run     run the commands that it prints, one after the other, and end
--dir     where to put models, configuration and logs
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import tiny_model
from running_daemons import cortex, end_on_sigterm, free_port, running, wait_for

from neuron.agent.devices.devices import CpuDevice

SMALL, LARGE = "Tiny/small-1M", "Tiny/large-30M"


def main() -> int:
    """Make the models, start both daemons, print the commands, and wait for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="scripts/demo --real", description=__doc__)
    parser.add_argument("--dir", type=Path, help="default: a new temporary folder, which is kept")
    parser.add_argument("--run", action="store_true", help="run the commands that are printed, and end")
    options = parser.parse_args()
    end_on_sigterm()
    began = time.monotonic()
    folder = options.dir or Path(tempfile.mkdtemp(prefix="cortex-demo-real-"))
    folder.mkdir(parents=True, exist_ok=True)
    api, metrics, neuron = free_port(31313), free_port(31314), free_port(13131)
    _make_models(folder)
    _write_configuration(folder, api, metrics, neuron)
    with running(folder, "neuron", "serve"), running(folder, "serve"):
        wait_for(f"http://127.0.0.1:{neuron}/health")
        wait_for(f"http://127.0.0.1:{api}/ready")
        commands = _commands(folder, api)
        print(
            f"\nA gateway and a neuron run in {folder}, after {time.monotonic() - began:.0f} s. Try, in this order:\n"
        )
        for comment, command in commands:
            print(f"# {comment}\n{command}\n")
        if options.run:
            return _run_all(commands, folder)
        print("Ctrl-C ends everything.", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                time.sleep(3600)
    return 0


def _make_models(folder: Path) -> None:
    for name, shape in (("small", tiny_model.SMALL), ("large", tiny_model.LARGE)):
        path = folder / f"{name}.gguf"
        if not path.exists():
            tiny_model.make(path, shape)
            print(f"made {path}, {path.stat().st_size / 2**20:.0f} MiB")


def _write_configuration(folder: Path, api: int, metrics: int, neuron: int) -> None:
    """Each model declares three fifths of the machine's memory, so that there is room for one."""
    memory_mb = CpuDevice("").infos[0].memory_total_mb * 3 // 5
    tables = "".join(
        f'[[models]]\nid = "{name}"\nengine = "llamacpp"\nsource = "./{file}.gguf"\ncontext = 4096\n'
        f'vram_mb = {memory_mb}\nargs = ["--threads", "1"]\n\n'
        for name, file in ((SMALL, "small"), (LARGE, "large"))
    )
    (folder / "neuron.toml").write_text(
        f'[api]\nlisten = "127.0.0.1:{neuron}"\n\n[engines.llamacpp]\nkind = "llamacpp"\n\n{tables}'
    )
    (folder / "cortex.toml").write_text(
        f'models_config = "models.toml"\n\n[gateway]\nlisten = "127.0.0.1:{api}"\n'
        f'metrics_listen = "127.0.0.1:{metrics}"\n\n[poll]\ninterval_seconds = 1\n\n[eviction]\n'
        f'min_residency_seconds = 0\n\n[[neurons]]\nname = "this-host"\nendpoint = "http://127.0.0.1:{neuron}"\n'
    )
    # A warm swap would need memory for both models.
    aliases = "".join(
        f'[aliases."{alias}"]\ntarget = "{target}"\nswap = "cold"\n\n'
        for alias, target in (("helexa/small", SMALL), ("helexa/large", LARGE))
    )
    profiles = "".join(
        f'[[models]]\nid = "{name}"\nharness = "llamacpp"\nvram_mb = {memory_mb}\n\n' for name in (SMALL, LARGE)
    )
    (folder / "models.toml").write_text(aliases + profiles)


def _commands(folder: Path, api: int) -> list[tuple[str, str]]:
    """What to try, each with a comment."""
    program = shlex.quote(cortex())
    move = f"{program} alias set helexa/small {LARGE} -c {shlex.quote(str(folder / 'cortex.toml'))}"
    config = shlex.quote(str(folder / "neuron.toml"))
    status = f"{program} neuron status -c {config}"

    def ask(alias: str) -> str:
        body = f'{{"model":"{alias}","max_tokens":10,"messages":[{{"role":"user","content":"Hello"}}]}}'
        return f"curl -s -D - http://127.0.0.1:{api}/v1/chat/completions -d '{body}'"

    return [
        ("The first request loads the model of the alias; x-cortex-model names it.", ask("helexa/small")),
        ("What the neuron holds.", status),
        ("There is memory for one: the small model is unloaded, the large one loaded.", ask("helexa/large")),
        (
            "The small tier gets the larger model. The answer says which one it is.",
            move,
        ),
        ("No load this time: the model is there.", ask("helexa/small")),
        ("What the neuron holds now.", status),
        ("What the engine has printed.", f"{program} neuron logs {LARGE} -c {config} --bytes 600"),
    ]


def _run_all(commands: list[tuple[str, str]], folder: Path) -> int:
    for comment, command in commands:
        print(f"\n# {comment}\n$ {command}", flush=True)
        result = subprocess.run(shlex.split(command), cwd=folder, check=False)
        if result.returncode:
            print(f"exit code {result.returncode}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
