"""`neuron.toml`: what it is read as, and every mistake with its line, key, message and hint."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest
import tomli

from catalogue.toml.addresses import Listen
from catalogue.toml.faults import FaultyFile
from neuron.agent.config import settings
from neuron.agent.config.load import load_neuron_file, parse_neuron_file
from neuron.agent.config.rules import PortRange

ROOT = Path(__file__).parents[3]
EXAMPLE = ROOT / "neuron.example.toml"

ENGINE = '[engines.a]\nkind = "vllm"\n'  # lines 1 and 2
MODEL = ENGINE + '[[models]]\nid = "m"\nengine = "a"\n'  # lines 3 to 5


def read(text: str) -> settings.NeuronFile:
    return parse_neuron_file(text.encode(), Path("/etc/cortex/neuron.toml")).settings


def faults_of(text: str) -> list[tuple[int | None, str | None, str, str | None]]:
    with pytest.raises(FaultyFile) as caught:
        read(text)
    return [(fault.line, fault.key, fault.message, fault.hint) for fault in caught.value.faults]


def test_defaults_are_those_of_the_documentation() -> None:
    """An empty file is valid, and listens on loopback only."""
    found = read("")

    assert found.api == settings.ApiSettings()
    assert found.api.listen == Listen("127.0.0.1", 13131)
    engine = read(ENGINE).engines["a"]
    assert (engine.load_seconds, engine.stop_seconds, engine.release_seconds) == (1800, 20, 20)
    assert (engine.hang_seconds, engine.max_restarts, engine.window_seconds) == (120, 3, 600)
    assert engine.ports == PortRange(20000, 20999)


def test_paths_are_beside_the_file() -> None:
    found = read('[api]\ncert = "a.crt"\nkey = "/etc/a.key"\n[state]\ndir = "state"')

    assert (found.api.cert, found.api.key) == (Path("/etc/cortex/a.crt"), Path("/etc/a.key"))
    assert found.state.dir == Path("/etc/cortex/state")


def test_example_is_accepted() -> None:
    loaded = load_neuron_file(EXAMPLE)

    assert loaded.warnings == ()
    assert [model.id for model in loaded.settings.models] == ["Qwen/Qwen3-1.7B", "Qwen/Qwen3.6-27B"]


def test_example_shows_every_key_and_its_default() -> None:
    """The example is the manual."""
    text = EXAMPLE.read_text()
    given = tomli.loads(text)
    shown = tomli.loads(re.sub(r"^# (\w+ = .*)$", r"\1", text, flags=re.MULTILINE))
    for section, kind in (("api", settings.ApiSettings), ("state", settings.StateDirSettings)):
        check_keys(kind, [shown[section]], [given.get(section, {})])
    check_keys(settings.EngineSettings, list(shown["engines"].values()), list(given["engines"].values()))
    check_keys(settings.ModelSettings, shown["models"], given["models"])


def check_keys(kind: type, shown: list[dict[str, object]], given: list[dict[str, object]]) -> None:
    defaults = {
        field.name: field.default_factory() if callable(field.default_factory) else field.default
        for field in dataclasses.fields(kind)
    }
    assert set().union(*shown) == defaults.keys()
    for table, written in zip(shown, given, strict=True):
        for key in table.keys() - written.keys():
            default = defaults[key]
            if default is not None:
                value = table[key]
                assert value == (str(default) if isinstance(default, Listen | PortRange) else default), key


def test_token_is_in_no_repr() -> None:
    assert "hunter2" not in repr(read('[api]\ntoken = "hunter2"'))


OPEN = '[api]\nlisten = "0.0.0.0:13131"\n'
OPENAI_COMMAND = 'write what to run, for example ["my-server", "{source}", "--port", "{port}"], or set kind'
KNOWN = "known: {model_id} {source} {port} {host} {devices} {tensor_parallel} {quant} {context}"

MISTAKES = [
    ("[api", 1, None, "not TOML: Expected ']' at the end of a table declaration", None),
    ("[api]\nlisten = 13131", 2, "api.listen", "must be a string, not an integer", "write it in quotes"),
    (
        '[api]\nlisten = "13131"', 2, "api.listen", "must be host:port",
        'for example "127.0.0.1:31313", "0.0.0.0:31313" or "[::1]:31313"',
    ),
    ('[api]\nlisten = "127.0.0.1:99999"', 2, "api.listen", "has a port above 65535", None),
    (
        OPEN, 2, "api.listen", "is reachable from other machines, and there is no token",
        "set token, or open = true on a network where everybody may load and unload models",
    ),
    ('[api]\ntokn = "x"', 2, "api.tokn", "unknown key `tokn`", "did you mean `token`?"),
    ('[api]\ntoken = "two words"', 2, "api.token", "must be printable ASCII without spaces, and not empty", None),
    ('[api]\nopen = "yes"', 2, "api.open", "must be true or false, not a string", "write it without quotes"),
    ("[api]\nallow_any = 1", 2, "api.allow_any", "must be true or false, not an integer", None),
    ('[api]\nadvertise = ""', 2, "api.advertise", "must not be empty", None),
    (
        '[api]\ncert = "a.crt"', 2, "api.cert", "needs `key` too", "TLS takes a certificate and its private key",
    ),
    ('[api]\nkey = "a.key"', 2, "api.key", "needs `cert` too", "TLS takes a certificate and its private key"),
    ("[state]\ndir = 7", 2, "state.dir", "must be a string, not an integer", "write it in quotes"),
    ('[stat]\ndir = "x"', 1, "stat", "unknown key `stat`", "did you mean `state`?"),
    ("[engines]\na = 1", 2, "engines.a", "must be a table, not an integer", "write [engines.a] on a line of its own"),
    (
        "[engines.a]", 1, "engines.a.command", 'is required for kind = "openai" and missing', OPENAI_COMMAND,
    ),
    (
        '[engines.a]\nkind = "vlm"', 2, "engines.a.kind",
        'must be one of "llamacpp", "vllm", "sglang", "transformers", "openai"', "did you mean `vllm`?",
    ),
    (
        '[engines.a]\ncommand = "serve {port}"', 2, "engines.a.command", "must be an array, not a string",
        "write it in [square brackets]",
    ),
    ("[engines.a]\ncommand = []", 2, "engines.a.command", "must not be empty", None),
    (
        '[engines.a]\ncommand = ["s", "{port}{prot}"]', 2, "engines.a.command[1]", "has the unknown placeholder {prot}",
        "did you mean {port}?",
    ),
    (
        '[engines.a]\ncommand = ["s", "{port}", "{zzz}"]', 2, "engines.a.command[2]",
        "has the unknown placeholder {zzz}", KNOWN,
    ),
    (
        '[engines.a]\ncommand = ["s", "{source}"]', 2, "engines.a.command", "has no {port}",
        "the neuron chooses the port: pass it to the engine",
    ),
    (
        '[engines.a]\ncommand = ["{source}", "{port}"]', 2, "engines.a.command[0]", "must name the program",
        "a placeholder cannot be the program",
    ),
    (
        ENGINE + 'ready = "health"', 3, "engines.a.ready", 'must be a path such as "/health"',
        "begin with /, without the server's address",
    ),
    (
        ENGINE + 'models = "http://h/v1"', 3, "engines.a.models", 'must be a path such as "/health"',
        "begin with /, without the server's address",
    ),
    (ENGINE + "load_seconds = 0", 3, "engines.a.load_seconds", "must be more than 0", None),
    (
        ENGINE + 'stop_seconds = "20"', 3, "engines.a.stop_seconds", "must be a number, not a string",
        "write it without quotes",
    ),
    (ENGINE + "release_seconds = -1", 3, "engines.a.release_seconds", "must be at least 0", None),
    (
        ENGINE + "hang_second = 5", 3, "engines.a.hang_second", "unknown key `hang_second`",
        "did you mean `hang_seconds`?",
    ),
    (ENGINE + "max_restarts = 1.5", 3, "engines.a.max_restarts", "must be an integer, not a float", None),
    (ENGINE + 'ports = "many"', 3, "engines.a.ports", 'must be "first-last"', 'for example "20000-20999"'),
    (ENGINE + 'ports = "30-20"', 3, "engines.a.ports", "has its first port above its last", None),
    (ENGINE + 'ports = "80-90"', 3, "engines.a.ports", "must lie between 1024 and 65535", None),
    (
        ENGINE + 'env = {"A-B" = "1"}', 3, "engines.a.env.A-B", "is not a name of an environment variable",
        "use letters, digits and _, no digit first",
    ),
    (
        ENGINE + 'env = {CUDA_VISIBLE_DEVICES = "1"}', 3, "engines.a.env.CUDA_VISIBLE_DEVICES",
        "is set by the neuron", "use `devices` of the model",
    ),
    (ENGINE + "env = {A = 1}", 3, "engines.a.env.A", "must be a string, not an integer", "write it in quotes"),
    (
        ENGINE + '[models]\nid = "m"', 3, "models", "must be an array of tables, not a table",
        "write [[models]], in double brackets",
    ),
    (ENGINE + '[[models]]\nengine = "a"', 3, "models[0].id", "is required and missing", None),
    (ENGINE + '[[models]]\nid = "m"', 3, "models[0].engine", "is required and missing", None),
    (
        ENGINE + '[[models]]\nid = "m"\nengine = "vllm"', 5, "models[0].engine",
        "names an engine that has no [engines] table", "add the table, or use one of: [engines.a]",
    ),
    (
        "[engines.local]\nkind = 'sglang'\n[[models]]\nid = 'm'\nengine = 'locl'", 5, "models[0].engine",
        "names an engine that has no [engines] table", "did you mean `local`?",
    ),
    (
        MODEL + '[[models]]\nid = "m"\nengine = "a"', 7, "models[1].id", '"m" is already used by an earlier entry',
        "the earlier entry is in line 4",
    ),
    (MODEL + 'args = "--x"', 6, "models[0].args", "must be an array, not a string", "write it in [square brackets]"),
    (
        MODEL + 'args = ["--n={contxt}"]', 6, "models[0].args[0]", "has the unknown placeholder {contxt}",
        "did you mean {context}?",
    ),
    (MODEL + "devices = []", 6, "models[0].devices", "must not be empty", "leave it out to have devices chosen"),
    (MODEL + "devices = [0, 0]", 6, "models[0].devices", "names a device twice", None),
    (MODEL + "devices = [-1]", 6, "models[0].devices[0]", "must be at least 0", None),
    (
        MODEL + "devices = [0]\nmin_devices = 2", 6, "models[0].devices", "has fewer devices than min_devices = 2",
        None,
    ),
    (MODEL + "min_devices = 0", 6, "models[0].min_devices", "must be at least 1", None),
    (MODEL + "vram_mb = '8 GB'", 6, "models[0].vram_mb", "must be an integer, not a string", "write it without quotes"),
    (MODEL + "context = 0", 6, "models[0].context", "must be at least 1", None),
    (
        MODEL + "preload = 'yes'", 6, "models[0].preload", "must be true or false, not a string",
        "write it without quotes",
    ),
    (MODEL + "idle_ttl_seconds = -5", 6, "models[0].idle_ttl_seconds", "must be at least 0", None),
    (MODEL + "sleep = 3", 6, "models[0].sleep", "must be at most 2", None),
    (
        MODEL.replace("vllm", "sglang") + "sleep = 1", 6, "models[0].sleep", 'is for engines of kind = "vllm" only',
        "remove it",
    ),
    (
        MODEL + "sleep = 1\n" + OPEN + "open = true", 6, "models[0].sleep",
        "needs vLLM's development endpoints, which must not be served with [api] open = true",
        "set [api] token and remove open, or remove sleep",
    ),
    (MODEL + "contxt = 7", 6, "models[0].contxt", "unknown key `contxt`", "did you mean `context`?"),
    ('listen = "x"', 1, "listen", "unknown key `listen`", "`listen` belongs in [api]"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "line", "key", "message", "hint"), MISTAKES, ids=range(len(MISTAKES)))
def test_mistake(text: str, line: int | None, key: str | None, message: str, hint: str | None) -> None:
    assert faults_of(text) == [(line, key, message, hint)]


def test_there_are_at_least_forty_mistakes() -> None:
    assert len({(text, message) for text, _, _, message, _ in MISTAKES}) >= 40


def test_every_fault_is_listed_at_once() -> None:
    text = OPEN + '[engines.a]\nkind = "vlm"\n[[models]]\nid = "m"\nengine = "b"\nsleep = 3\n'

    assert [key for _, key, _, _ in faults_of(text)] == [
        "api.listen", "engines.a.kind", "models[0].engine", "models[0].sleep",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", None),
        ('[api]\ntoken = "t"\nopen = true\nallow_any = true', "api.open"),
        (MODEL.replace("vllm", "transformers") + "idle_ttl_seconds = 9", "models[0].idle_ttl_seconds"),
    ],
)
def test_warning(text: str, key: str | None) -> None:
    loaded = parse_neuron_file(text.encode(), Path("/etc/cortex/neuron.toml"))
    assert [warning.key for warning in loaded.warnings] == [key]


def test_missing_file_names_the_command_that_writes_one(tmp_path: Path) -> None:
    with pytest.raises(FaultyFile, match="cannot be read: No such file or directory; `cortex neuron init` writes one"):
        load_neuron_file(tmp_path / "neuron.toml")
