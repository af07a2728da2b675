"""The demo's folder, with its `cortex.toml` and `models.toml`."""

from __future__ import annotations

import tempfile
from pathlib import Path

__all__ = ["DRAIN_S", "make_home", "write_files"]

DRAIN_S = 10

MARK = "# Written by `cortex demo`"
MODELS_TOML = f"""\
{MARK}, which overwrites it each time it starts.
# Edit and save: the gateway notices within 100 ms. It reports a mistake, and keeps the previous file in force.
[aliases]
"helexa/small" = "Qwen/Qwen3-1.7B"
"helexa/balanced" = "Qwen/Qwen3-8B"
"helexa/large" = "Qwen/Qwen3.6-27B"

[[models]]
id = "Qwen/Qwen3-1.7B"
harness = "llamacpp"
vram_mb = 4096

[[models]]
id = "Qwen/Qwen3-8B"
harness = "llamacpp"
vram_mb = 7168

[[models]]
id = "Qwen/Qwen3-14B"        # not loaded on any neuron: send a request for it to see a cold start
harness = "llamacpp"
vram_mb = 12288

[[models]]
id = "Qwen/Qwen3.6-27B"
harness = "llamacpp"
vram_mb = 20480
min_device_vram_mb = 24000
"""


def make_home(folder: Path | None) -> Path:
    """Make the folder, unless it has a configuration that the demo did not write.

    Raises:
        OSError: It cannot be made, or has such a configuration.
    """
    home = (folder or Path(tempfile.mkdtemp(prefix="cortex-demo-"))).resolve()
    home.mkdir(parents=True, exist_ok=True)
    for path in (home / "cortex.toml", home / "models.toml"):
        if path.exists() and not path.read_bytes().startswith(MARK.encode()):
            raise FileExistsError(f"{path} was not written by the demo and is kept; use --dir to name another folder")
    return home


def write_files(home: Path, neurons: dict[str, str], ports: tuple[int, int]) -> Path:
    """Write both files, and return the path of `cortex.toml`.

    Args:
        home: The folder.
        neurons: The endpoint of each neuron, by its name.
        ports: Of the API and of the metrics.
    """
    (home / "models.toml").write_text(MODELS_TOML, encoding="utf-8")
    config = home / "cortex.toml"
    config.write_text(_cortex_toml(neurons, ports), encoding="utf-8")
    return config


def _cortex_toml(neurons: dict[str, str], ports: tuple[int, int]) -> str:
    api, metrics = ports
    lines = [
        f"{MARK}, which overwrites it each time it starts. cortex.example.toml explains every key.",
        'models_config = "models.toml"',
        "",
        "[gateway]",
        f'listen = "127.0.0.1:{api}"',
        f'metrics_listen = "127.0.0.1:{metrics}"',
        f"drain_seconds = {DRAIN_S}",
        "",
        "[limits]",
        "connections = 256   # fits in the usual limit of 1,024 open files",
        "",
        "[capture]",
        "enabled = true",
        "",
        "[log]",
        'level = "warning"   # "info" logs every request',
    ]
    for name, endpoint in neurons.items():
        lines += ["", "[[neurons]]", f'name = "{name}"', f'endpoint = "{endpoint}"']
    return "\n".join(lines) + "\n"
