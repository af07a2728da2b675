"""Measures a host with two models of 1.7B and 27B shape, random weights, behind a neuron and a gateway.

Each tier is loaded by a request through the gateway, asked `--requests` questions, and unloaded. The table has load
time, time to first token, tokens/s, device memory before, with and after it, and power; then the ratio large to small
beside 2.68, which real models of these sizes had. Then `cortex bench` compares the tiers (its correctness means nothing
here). Both go into docs/performance.md. See scripts/gpu_check.

The shapes need 54 GB of disk (--dir) and 58 GB of device memory, if both are to be loaded at once; cortex unloads one.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from running_daemons import cortex, end_on_sigterm, free_port, running, wait_for

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/performance.md"
HEADING = "## A host with random weights"
REFERENCE_RATIO = 2.68  # 6.7 s to 2.5 s, of the question in `cortex bench` at the tiers of docs/performance.md
SAMPLE_S = 0.5
LOAD_S = 3600.0
DISK_GB = 60  # of the full shapes
TIERS = ("small", "large")


@dataclass
class Answer:
    """One answer. Seconds from sending."""

    first_token_s: float
    last_token_s: float
    total_s: float
    tokens: int

    @property
    def tokens_per_s(self) -> float:
        """After the first token, which has the prompt's time."""
        spent_s = self.last_token_s - self.first_token_s
        return (self.tokens - 1) / spent_s if spent_s > 0 else float("nan")


@dataclass
class TierResult:
    """What was measured of one tier. Memory in MB of all devices; power in W, None where it is not known."""

    tier: str
    parameters: int
    load_s: float = float("nan")
    before_mb: int = 0
    loaded_mb: int = 0
    after_mb: int = 0
    model_mb: int | None = None
    idle_w: float | None = None
    busy_w: float | None = None
    answers: list[Answer] = field(default_factory=list)

    def median(self, name: str) -> float:
        """Of the answers after the first, which waited for the load."""
        values: list[float] = [getattr(answer, name) for answer in self.answers[1:]]
        return statistics.median(values)


def main() -> int:
    """Make the models, start both daemons, measure both tiers, write the table."""
    options = _options()
    end_on_sigterm()
    folder = options.dir or Path(tempfile.mkdtemp(prefix="cortex-gpu-check-"))
    folder.mkdir(parents=True, exist_ok=True)
    parameters = _make_models(folder, options)
    api, metrics, neuron = free_port(31313), free_port(31314), free_port(13131)
    _write_configuration(folder, options, api, metrics, neuron)
    path = f"{Path(options.python).parent}:{os.environ['PATH']}"
    with running(folder, "neuron", "serve", PATH=path), running(folder, "serve"):
        neuron_url, gateway_url = f"http://127.0.0.1:{neuron}", f"http://127.0.0.1:{api}"
        wait_for(f"{neuron_url}/health")
        wait_for(f"{gateway_url}/ready")
        with (
            httpx.Client(base_url=neuron_url, timeout=LOAD_S, trust_env=False) as host,
            httpx.Client(base_url=gateway_url, timeout=LOAD_S, trust_env=False) as gateway,
        ):
            devices = host.get("/discovery").json()["devices"]
            results = [_measure(tier, parameters[tier], host, gateway, options) for tier in TIERS]
        bench = _bench(folder) if options.bench else None
    table = _table(results, devices, options) + ("" if bench is None else f"\n\n{_bench_table(bench)}")
    print(table)
    if options.write:
        _write_page(table, options)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu_check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, for a try on any machine")
    parser.add_argument("--engine", choices=("transformers", "llamacpp"), default="transformers")
    parser.add_argument(
        "--python",
        default=shutil.which("python3") or sys.executable,
        help="the Python that has torch and transformers[serving]; default: python3",
    )
    parser.add_argument("--dir", type=Path, help="where to put the models; default: a new temporary folder")
    parser.add_argument("--requests", type=int, default=5, help="for each tier, after the one that loads it")
    parser.add_argument("--tokens", type=int, default=64, help="of each answer")
    parser.add_argument(
        "--bench",
        action=argparse.BooleanOptionalAction,
        help="run `cortex bench` too; default: not with --tiny, as it takes long on a CPU",
    )
    parser.add_argument("--write", action="store_true", help=f"write the table into {PAGE.relative_to(ROOT)}")
    options = parser.parse_args()
    if options.bench is None:
        options.bench = not options.tiny
    if options.engine == "llamacpp" and not options.tiny:
        parser.error("--engine llamacpp has tiny shapes only: add --tiny")
    if options.requests < 1 or options.tokens < 2:
        parser.error("--requests must be at least 1, --tokens at least 2")
    return options


# Models ...............................................................................................................


def _make_models(folder: Path, options: argparse.Namespace) -> dict[str, int]:
    """Make what is not there yet; the number of parameters by tier."""
    if options.engine == "llamacpp":
        return _make_gguf(folder)
    _check_python(options.python)
    free_gb = shutil.disk_usage(folder).free / 1e9
    if not options.tiny and free_gb < DISK_GB and not (folder / "large.parameters").exists():
        raise SystemExit(f"{folder} has {free_gb:.0f} GB free, and the models need {DISK_GB}: name another --dir")
    found = {}
    for tier in TIERS:
        note = folder / f"{tier}.parameters"
        if not note.exists():
            shape = f"tiny-{tier}" if options.tiny else tier
            command = [options.python, str(Path(__file__).with_name("random_model.py")), str(folder / tier), shape]
            print(f"making {folder / tier}", flush=True)
            made = subprocess.run(command, check=False, capture_output=True, text=True)
            if made.returncode:
                raise SystemExit(f"{' '.join(command)} failed:\n{made.stderr[-2000:]}")
            note.write_text(made.stdout)
        found[tier] = int(note.read_text())
    return found


def _check_python(python: str) -> None:
    try:
        command = [python, "-c", "import torch, transformers, uvicorn"]
        check = subprocess.run(command, check=False, capture_output=True, text=True)
    except OSError as error:
        raise SystemExit(f"cannot run {python}: {error.strerror}: name another --python") from None
    if check.returncode:
        reason = check.stderr.strip().rpartition("\n")[2]
        raise SystemExit(f"{python} cannot import torch, transformers and uvicorn ({reason}): name another --python")


def _make_gguf(folder: Path) -> dict[str, int]:
    import tiny_model  # noqa: PLC0415 - needs the extra `real`

    shapes = {"small": tiny_model.SMALL, "large": tiny_model.LARGE}
    for tier, shape in shapes.items():
        if not (folder / f"{tier}.gguf").exists():
            tiny_model.make(folder / f"{tier}.gguf", shape)
    return {tier: (folder / f"{tier}.gguf").stat().st_size // 4 for tier in TIERS}  # float32, almost nothing else


def _write_configuration(folder: Path, options: argparse.Namespace, api: int, metrics: int, neuron: int) -> None:
    suffix = ".gguf" if options.engine == "llamacpp" else ""
    # More threads than idle cores make llama.cpp many times slower, and tiny models need one.
    context = 'context = 4096\nargs = ["--threads", "1"]\n' if options.engine == "llamacpp" else ""
    tables = "".join(
        f'[[models]]\nid = "random/{tier}"\nengine = "{options.engine}"\nsource = "./{tier}{suffix}"\n{context}\n'
        for tier in TIERS
    )
    (folder / "neuron.toml").write_text(
        f'[api]\nlisten = "127.0.0.1:{neuron}"\n\n[engines.{options.engine}]\nkind = "{options.engine}"\n\n{tables}'
    )
    (folder / "cortex.toml").write_text(
        f'models_config = "models.toml"\n\n[gateway]\nlisten = "127.0.0.1:{api}"\n'
        f'metrics_listen = "127.0.0.1:{metrics}"\n\n[poll]\ninterval_seconds = 1\n\n'
        f'[[neurons]]\nname = "this-host"\nendpoint = "http://127.0.0.1:{neuron}"\n'
    )
    aliases = "".join(f'"{tier}" = "random/{tier}"\n' for tier in TIERS)
    profiles = "".join(f'[[models]]\nid = "random/{tier}"\nharness = "{options.engine}"\n\n' for tier in TIERS)
    (folder / "models.toml").write_text(f"[aliases]\n{aliases}\n{profiles}")


# Measuring ............................................................................................................


def _measure(
    tier: str, parameters: int, host: httpx.Client, gateway: httpx.Client, options: argparse.Namespace
) -> TierResult:
    model = f"random/{tier}"
    before_mb, idle_w = _devices(host)
    result = TierResult(tier, parameters, before_mb=before_mb, idle_w=idle_w)
    with _sampling_power(host) as samples:
        for number in range(options.requests + 1):
            print(f"{tier}: {'loading' if not number else f'request {number} of {options.requests}'}", flush=True)
            result.answers.append(_ask(gateway, tier, number, options))
            if not number:
                samples.clear()
    result.load_s = _load_seconds(host, model)
    result.loaded_mb, _ = _devices(host)
    result.busy_w = max(samples, default=None)
    entry = next(entry for entry in host.get("/models").json() if entry["id"] == model)
    result.model_mb = entry["vram_used_mb"]
    host.post("/models/unload", json={"model_id": model, "force": True}).raise_for_status()
    result.after_mb, _ = _devices(host)
    return result


def _ask(gateway: httpx.Client, alias: str, number: int, options: argparse.Namespace) -> Answer:
    # Each question begins differently, so that no prefix cache answers.
    question = f"{number}: What is the capital of Georgia?"
    body: dict[str, Any] = {"model": alias, "stream": True, "max_tokens": options.tokens}
    body["messages"] = [{"role": "user", "content": question}]
    if options.engine == "llamacpp":
        body |= {"ignore_eos": True, "temperature": 1}
    began, times, tokens = time.perf_counter(), [], None
    with gateway.stream("POST", "/v1/chat/completions", json=body) as answer:
        if answer.status_code != 200:
            raise SystemExit(f"the gateway answered {answer.status_code}: {answer.read().decode()}")
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise SystemExit(f"the stream ended in an error: {event['error']}")
            tokens = (event.get("usage") or {}).get("completion_tokens", tokens)
            if any((choice.get("delta") or {}).get("content") for choice in event.get("choices", ())):
                times.append(time.perf_counter() - began)
    if len(times) < 2:
        raise SystemExit(f"the answer has {len(times)} pieces; nothing can be measured")
    return Answer(times[0], times[-1], time.perf_counter() - began, tokens or options.tokens)


def _devices(host: httpx.Client) -> tuple[int, float | None]:
    """Memory in use in MB, and power in W if it is known, of all devices together."""
    devices = host.get("/health").json()["devices"]
    known_w = [device["power_w"] for device in devices if device.get("power_w") is not None]
    return sum(device["vram_used_mb"] for device in devices), sum(known_w) if known_w else None


@contextmanager
def _sampling_power(host: httpx.Client) -> Iterator[list[float]]:
    """Samples of the power of all devices, by a thread of its own."""
    samples: list[float] = []
    stop = threading.Event()

    def sample() -> None:
        with httpx.Client(base_url=host.base_url, trust_env=False) as own:
            while not stop.wait(SAMPLE_S):
                with contextlib.suppress(httpx.HTTPError):
                    _, power_w = _devices(own)
                    if power_w is not None:
                        samples.append(power_w)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def _load_seconds(host: httpx.Client, model: str) -> float:
    """By the neuron's own account: the start of the engine until it could serve."""
    found = re.search(
        rf'^neuron_load_seconds_sum\{{model="{re.escape(model)}"\}} (\S+)', host.get("/metrics").text, re.MULTILINE
    )
    return float("nan") if found is None else float(found[1])


def _bench(folder: Path) -> dict[str, Any]:
    """The summary of `cortex bench`; its report stays in the folder."""
    files = ["-c", str(folder / "cortex.toml"), "--out", str(folder / "bench")]
    made = subprocess.run(
        [cortex(), "bench", *TIERS, "--quick", "--json", *files], check=False, stdout=subprocess.PIPE, text=True
    )
    if made.returncode:
        raise SystemExit(f"cortex bench ended with {made.returncode}")
    summary: dict[str, Any] = json.loads(made.stdout)
    return summary


# The table ............................................................................................................


def _table(results: list[TierResult], devices: list[dict[str, Any]], options: argparse.Namespace) -> str:
    names = ", ".join(f"{device['name']} ({device['vram_total_mb']} MB)" for device in devices)
    memory = "host memory" if devices[0]["name"] == "cpu" else "device memory"
    when = dt.datetime.now(dt.UTC).date()
    arguments = " ".join(
        word for word in (f"--engine {options.engine}", "--tiny" if options.tiny else "", "--write") if word
    )
    lines = [
        (
            f"`scripts/gpu_check {arguments}`, {when}, {names}, Python {platform.python_version()}: medians of"
            f" {options.requests} streamed answers of {options.tokens} tokens through the gateway."
        ),
        "",
        (
            f"| tier | parameters | load, s | TTFT, ms | tokens/s | total, s | {memory} before / loaded / after, MB"
            " | of the model, MB | power idle / busy, W |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.tier} | {_count(one.parameters)} | {one.load_s:.1f} | {one.median('first_token_s') * 1000:.0f}"
        f" | {one.median('tokens_per_s'):.1f} | {one.median('total_s'):.2f}"
        f" | {one.before_mb:,} / {one.loaded_mb:,} / {one.after_mb:,} | {_known(one.model_mb)}"
        f" | {_known(one.idle_w)} / {_known(one.busy_w)} |"
        for one in results
    ]
    small, large = results
    ratio = large.median("total_s") / small.median("total_s")
    lines += ["", f"Total time, large to small: {ratio:.2f}; real models of the full sizes had {REFERENCE_RATIO}."]
    if options.tiny:
        lines += ["", "Tiny shapes: they show that the whole path works, and nothing about the speed of a GPU."]
    return "\n".join(lines)


def _bench_table(bench: dict[str, Any]) -> str:
    lines = [
        f"`cortex bench --quick {' '.join(TIERS)}` at the same fleet:",
        "",
        "| tier | probe, s | questions: TTFT, s | questions: total, s | tokens/s |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {tier['tier']} | {tier['probe']['median']:.2f} | {tier['first_token']['median']:.2f}"
        f" | {tier['total']['median']:.2f} | {tier['tokens_per_s']:.1f} |"
        for tier in bench["tiers"]
    ]
    ratio = "unknown" if bench["ratio"] is None else f"{bench['ratio']:.2f}"
    return "\n".join(
        [*lines, "", f"Ratio of the probe, large to small: {ratio}, beside {bench['reference']['ratio']}."]
    )


def _count(parameters: int) -> str:
    scale, unit = (1e9, "B") if parameters >= 1e9 else (1e6, "M")
    return f"{parameters / scale:.1f}{unit}"


def _known(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _write_page(table: str, options: argparse.Namespace) -> None:
    """Replace the part of the page that belongs to this engine and these shapes, or add it."""
    key = f"{options.engine}{' tiny' if options.tiny else ''}"
    begin, end = f"<!-- gpu_check {key} -->", f"<!-- end of gpu_check {key} -->"
    part, text = f"{begin}\n\n{table}\n\n{end}", PAGE.read_text()
    if begin in text:
        before, _, rest = text.partition(begin)
        text = before + part + rest.partition(end)[2]
    else:
        heading = "" if HEADING in text else f"\n{HEADING}\n"
        text = f"{text.rstrip()}\n{heading}\n{part}\n"
    PAGE.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
