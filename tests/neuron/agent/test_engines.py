"""Engines: commands of every kind, placeholders, readings of their load, reasons of failed starts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from neuron.agent.config.placeholders import fill_in
from neuron.agent.config.settings import EngineSettings, ModelSettings
from neuron.agent.engines.kinds import search_path
from neuron.agent.engines.launch import Launch, LaunchOptions, resolved_source
from neuron.agent.engines.load_progress import printed_progress
from neuron.agent.engines.reported_load import ReportedLoad, read_load, sum_of
from neuron.agent.engines.served_model import ServedModel, served_model
from neuron.agent.engines.sleep import SleepFailed, put_to_sleep, wake_up
from neuron.agent.engines.start_failure import explain_start_failure

CONFIG = Path("/etc/cortex")
ADDRESS = "--host 127.0.0.1 --port 20000 --served-model-name org/m"
VLLM_COMMAND = f"vllm serve org/m {ADDRESS}"
SGLANG_COMMAND = f"python3 -m sglang.launch_server --model-path org/m {ADDRESS}"


def launch(kind: str, model_id: str = "org/m", *, options: LaunchOptions | None = None, **keys: object) -> Launch:
    engine = EngineSettings(kind)  # type: ignore[arg-type]
    model = ModelSettings(model_id, "e", **keys)  # type: ignore[arg-type]
    return Launch(model, engine, options or LaunchOptions(), CONFIG, {"PATH": "/nowhere", "HOME": "/root"})


@pytest.mark.parametrize(
    ("kind", "keys", "devices", "command"),
    [
        ("vllm", {}, (0,), VLLM_COMMAND),
        (
            "vllm", {"context": 8192, "args": ("--x", "y"), "sleep": 1}, (0, 1),
            f"{VLLM_COMMAND} --tensor-parallel-size 2 --max-model-len 8192 --enable-sleep-mode --x y",
        ),
        (
            "sglang", {"context": 8192}, (1, 2),
            f"{SGLANG_COMMAND} --tp-size 2 --context-length 8192 --enable-metrics",
        ),
        ("transformers", {}, (0,), "transformers serve org/m --host 127.0.0.1 --port 20000"),
        (
            "transformers", {"source": "/srv/m"}, (0,),
            "transformers serve /srv/m --host 127.0.0.1 --port 20000",
        ),
    ],
)  # fmt: skip
def test_commands_of_known_engines(kind: str, keys: dict[str, object], devices: tuple[int, ...], command: str) -> None:
    assert " ".join(launch(kind, **keys).command(20000, devices)) == command


def test_llama_server_is_taken_from_the_path(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.touch(0o755)
    found = launch("llamacpp", source="./m.gguf", context=4096)
    found = Launch(found.model, found.engine, found.options, CONFIG, {"PATH": str(tmp_path)})

    assert found.command(1, (0,)) == [
        "llama-server", "--model", "/etc/cortex/m.gguf", "--host", "127.0.0.1", "--port", "1", "--alias", "org/m",
        "--ctx-size", "4096", "--metrics", "--slots",
    ]  # fmt: skip


def test_llama_server_of_a_hub_id() -> None:
    command = launch("llamacpp").command(1, (0,))
    assert "-hf org/m" in " ".join(command)
    assert "--ctx-size" not in command


def test_wheel_stands_in_for_llama_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if name == "xllamacpp" else None)
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    command = launch("llamacpp").command(1, (0,))
    assert command[:3] == [sys.executable, "-m", "neuron.agent.engines.xllamacpp_server"]


def test_template_of_the_settings_wins() -> None:
    engine = EngineSettings("vllm", ("run", "{source}", "--port={port}"), ready="/r", models="/m")
    found = Launch(ModelSettings("m", "e"), engine, LaunchOptions(), CONFIG, {})

    assert found.command(5, (0,)) == ["run", "m", "--port=5"]
    assert (found.ready_path, found.models_path) == ("/r", "/m")


def test_environment_is_the_neurons_then_the_engines_then_the_models_then_the_devices() -> None:
    engine = EngineSettings("vllm", env={"A": "engine", "B": "engine"})
    found = Launch(ModelSettings("m", "e", env={"B": "model"}), engine, LaunchOptions(), CONFIG, {"A": "0", "C": "0"})
    env = found.environment({"CUDA_VISIBLE_DEVICES": "GPU-1"})

    assert (env["A"], env["B"], env["C"]) == ("engine", "model", "0")
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-1"
    assert "VLLM_SERVER_DEV_MODE" not in env
    assert launch("vllm", sleep=2).environment({})["VLLM_SERVER_DEV_MODE"] == "1"


def test_programs_beside_this_python_are_found() -> None:
    assert search_path("/bin").split(":") == ["/bin", str(Path(sys.executable).parent)]


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (None, "org/m"),
        ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B"),
        ("/srv/m", Path("/srv/m")),
        ("./m", CONFIG / "m"),
        ("../m", CONFIG / "../m"),
        ("models/m.gguf", CONFIG / "models/m.gguf"),
        ("~/m", Path.home() / "m"),
    ],
)
def test_sources(source: str | None, found: object) -> None:
    assert resolved_source(ModelSettings("org/m", "e", source), CONFIG) == found


def test_fingerprint_is_that_of_the_arguments() -> None:
    plain = launch("vllm").fingerprint(1)
    assert plain == launch("vllm").fingerprint(1)
    others = [
        launch("vllm", args=("--x",)), launch("vllm", env={"A": "1"}), launch("vllm", context=1),
        launch("vllm", options=LaunchOptions(quant="fp8")), launch("sglang"), launch("vllm", sleep=1),
    ]  # fmt: skip
    assert len({plain, launch("vllm").fingerprint(2), *(other.fingerprint(1) for other in others)}) == 8


@pytest.mark.parametrize(
    ("template", "filled"),
    [
        (["a", "{x}", "b"], ["a", "1", "b"]),
        (["a", "--n", "{none}", "b"], ["a", "b"]),
        (["--flag", "--n={none}", "b"], ["--flag", "b"]),
        (["--flag", "{none}", "{none}"], []),
        (["a=b", "{none}"], ["a=b"]),
        (["--a=1", "{none}"], ["--a=1"]),
        (['{"json": {"x": 1}}', "{x}{x}"], ['{"json": {"x": 1}}', "11"]),
    ],
)
def test_placeholders(template: list[str], filled: list[str]) -> None:
    assert fill_in(template, {"x": "1", "none": None}) == filled


# Load .................................................................................................................


class Answers:
    """An engine that has these answers."""

    def __init__(self, **answers: str) -> None:
        self.answers = {f"/{path}": text for path, text in answers.items()}
        self.posts: list[str] = []

    async def get(self, path: str) -> tuple[int, bytes]:
        text = self.answers.get(path)
        return (404, b"") if text is None else (200, text.encode())

    async def post(self, path: str, body: object = None) -> tuple[int, bytes]:
        self.posts.append(path)
        return 200 if path not in self.answers else 500, b"no"


VLLM = """
# HELP vllm:num_requests_running Number of requests
vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_running{engine="1",model_name="m"} 1.0
vllm:num_requests_waiting{engine="0",model_name="m"} 4.0
vllm:generation_tokens_total{engine="0",model_name="m"} 1.5e+03
"""
SGLANG = 'sglang:num_running_reqs{model_name="m"} 3.0\nsglang:num_queue_reqs{model_name="m"} 1.0\n'
SLOTS = '[{"id":0,"is_processing":true,"id_task":7},{"id":1,"is_processing":false}]'


@pytest.mark.parametrize(
    ("kind", "engine", "load"),
    [
        ("vllm", Answers(metrics=VLLM), ReportedLoad(3, 4, 1500.0)),
        ("sglang", Answers(metrics=SGLANG), ReportedLoad(3, 1)),
        ("llamacpp", Answers(slots=SLOTS), ReportedLoad(1, 0, ([7, -1], None))),
        (
            "llamacpp",
            Answers(slots=SLOTS, metrics="llamacpp:requests_deferred 5\nllamacpp:tokens_predicted_total 9\n"),
            ReportedLoad(1, 5, ([7, -1], 9.0)),
        ),
        ("llamacpp", Answers(), None),
        ("llamacpp", Answers(slots="<html>"), None),
        ("vllm", Answers(metrics="nothing 1"), None),
        ("transformers", Answers(metrics=VLLM), None),
        ("openai", Answers(metrics=VLLM), None),
    ],
)  # fmt: skip
async def test_load_is_read_as_each_engine_reports_it(kind, engine: Answers, load: ReportedLoad | None) -> None:
    assert await read_load(kind, engine) == load


def test_sum_of_a_metric_is_over_its_labels_and_of_no_other_name() -> None:
    assert sum_of('a 1\na_total 5\na{x="1"} 2\n', "a") == 3
    assert sum_of("b 1", "a") is None


@pytest.mark.parametrize(
    ("body", "served"),
    [
        (b'{"data":[{"id":"other"},{"id":"m","max_model_len":4096}]}', ServedModel("m", 4096)),
        (b'{"data":[{"id":"other","meta":{"n_ctx":2048}}]}', ServedModel("other", 2048)),
        (b'{"data":[]}', ServedModel("m")),
        (b"<html>", ServedModel("m")),
        (b'{"data":[{"id":"m","meta":{"n_ctx":"many"}}]}', ServedModel("m")),
    ],
)
def test_served_model(body: bytes, served: ServedModel) -> None:
    assert served_model(body, "m") == served


async def test_sleep_and_wake_are_the_documented_sequences() -> None:
    engine = Answers()
    await put_to_sleep(engine, 1)
    await wake_up(engine, 1)
    assert engine.posts == ["/sleep?level=1", "/wake_up"]
    engine = Answers()
    await put_to_sleep(engine, 2)
    await wake_up(engine, 2)
    assert engine.posts == ["/sleep?level=2", "/wake_up?tags=weights", "/collective_rpc", "/wake_up?tags=kv_cache"]
    with pytest.raises(SleepFailed, match="/wake_up was answered with 500: no"):
        await wake_up(Answers(wake_up=""), 1)


@pytest.mark.parametrize(
    ("output", "progress"),
    [
        (b"Loading safetensors checkpoint shards:  25% Completed | 1/4", 0.25),
        (b"Loading checkpoint shards: 100%|###| 4/4", 1.0),
        (
            b"Loading safetensors checkpoint shards:   0% Completed\nLoading safetensors checkpoint shards:  50% Comp",
            0.5,
        ),
        (b"CPU usage 80%", None),
        (b"", None),
    ],
)
def test_progress_of_a_load(output: bytes, progress: float | None) -> None:
    assert printed_progress(output) == progress


# Failed starts ........................................................................................................

REASONS = {
    "not enough free device memory": [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4096 MiB on device 0: cudaMalloc failed: out of memory",
        "ValueError: No available memory for the cache blocks. Try increasing `gpu_memory_utilization`",
        "ValueError: Free memory on device (3.1/23.6 GiB) on startup is less than desired GPU memory utilization",
    ],
    "the port is in use": [
        "OSError: [Errno 98] Address already in use",
        "start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 20000",
    ],
    "the model is gated": [
        "OSError: You are trying to access a gated repo.",
        "huggingface_hub.errors.GatedRepoError: 403 Client Error.",
    ],
    "the engine rejects one of its arguments": [
        "vllm: error: unrecognized arguments: --flsh-attn",
        "error: invalid argument: --foo",
        "xllamacpp: error: argument --port: invalid int value: 'x'",
    ],
    "a file or model was not found": [
        "gguf_init_from_file: failed to open GGUF file '/nope.gguf' (No such file or directory)",
        "OSError: org/nope is not a local folder and is not a valid model identifier",
    ],
    "the engine's program cannot be started": ["cannot start vllm: No such file or directory"],
    "the engine's program lacks a Python module": ["/usr/bin/python3: No module named sglang"],
    "the engine cannot read this model": ["llama_model_load: error loading model: unknown model architecture: 'x'"],
}


@pytest.mark.parametrize(("reason", "line"), [(reason, line) for reason, lines in REASONS.items() for line in lines])
def test_reason_of_a_failed_start_is_found_in_its_output(reason: str, line: str) -> None:
    found = explain_start_failure(f"starting\n{line}\nshutting down\n".encode(), 1)

    assert found.reason.startswith(reason)
    assert line[:100] in found.text()


@pytest.mark.parametrize(
    ("exit_code", "reason"),
    [(3, "exited with status 3"), (139, "signal 11"), (137, "SIGKILL"), (None, "did not become ready")],
)
def test_without_a_known_text_the_exit_status_is_the_reason(exit_code: int | None, reason: str) -> None:
    assert reason in explain_start_failure(b"bye\n", exit_code).reason
