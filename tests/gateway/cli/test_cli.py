"""The command line: output, streams and exit codes. Real processes where logs and signals matter."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import click
import pytest
from click.testing import CliRunner
from fakes.operator import key_in
from fakes.process import END_S, cortex, on_a_terminal, running_cortex

from catalogue.models import Catalogue
from gateway import __version__
from gateway.aliases.cross_checks import cross_check
from gateway.cli import main
from gateway.cli.terminal import console
from gateway.cli.views import status_view
from gateway.config.load import load

BAD_MODELS = '[[models]]\nid = "a"\nmin_device = 1\n[aliases]\nx = ""\n'
BAD_MODELS_FAULTS = [
    "error: {path}:1: models[0].harness: is required and missing",
    "error: {path}:3: models[0].min_device: unknown key `min_device`; did you mean `min_devices`?",
    "error: {path}:5: aliases.x: has an empty target; name a model id, or remove the alias",
]
SHADOWING = '[[models]]\nid = "a"\nharness = "h"\n[[models]]\nid = "b"\nharness = "h"\n[aliases]\na = "b"\n'


@pytest.fixture
def folder(tmp_path):
    """A folder with a cortex.toml for free ports; each test writes its own models.toml."""
    write(tmp_path, "models = []\n")
    return tmp_path


def write(folder, models, settings=""):
    gateway = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
    (folder / "cortex.toml").write_text(f'models_config = "models.toml"\n{settings}\n{gateway}')
    (folder / "models.toml").write_text(models)


# --version and --help.


def test_version_is_the_packages():
    """`cortex --version` names command and version."""
    result = CliRunner().invoke(main.main, ["--version"])

    assert f"cortex, version {__version__}\n" == result.output


@pytest.mark.parametrize("command", sorted(main.main.commands))
def test_help_explains_every_option(command):
    """Every option says what it does, and its default if it is left out."""
    options = [param for param in main.main.commands[command].params if isinstance(param, click.Option)]

    result = CliRunner().invoke(main.main, [command, "--help"])

    assert result.exit_code == 0
    assert [option.name for option in options if not option.help] == []
    assert [
        option.name
        for option in options
        if not (option.is_flag or option.required or option.show_default or "Without it" in option.help)
    ] == []


def test_help_lists_every_command_without_importing_it():
    """`cortex --help` is fast: nothing is imported but Click and the standard library."""
    program = (
        "import sys; from gateway.cli.main import main; main(['--help'], standalone_mode=False); print(*sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    *lines, imported = done.stdout.splitlines()
    modules = set(imported.split())
    heavy = {"httpx", "pydantic", "quart", "rich", "structlog", "tomlkit", "trio", "hypercorn", "prometheus_client"}
    assert modules & heavy == set()
    ours = {name for name in modules if name.partition(".")[0] in {"catalogue", "gateway", "neuron"}}
    assert ours == {"gateway", "gateway.cli", "gateway.cli.main"}
    for name, (_, summary) in main.COMMANDS.items():
        assert any(line.split() == [name, *summary.split()] for line in lines), name
        assert main.main.commands[name].help.startswith(summary)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell):
    """The script asks cortex itself for the words."""
    result = CliRunner().invoke(main.main, ["completion", shell])

    assert result.exit_code == 0
    assert f"_CORTEX_COMPLETE={shell}_complete" in result.output


# check and serve load the same files.


@pytest.mark.parametrize("command", ["check", "serve"])
def test_faulty_catalogue_is_refused_with_every_fault(folder, command):
    """All faults at once, a line each with file and line, exit code 1, no traceback."""
    write(folder, BAD_MODELS)

    done = cortex(command, "-c", folder / "cortex.toml")

    assert done.returncode == 1
    assert done.stdout == ""
    assert [line.format(path=folder / "models.toml") for line in BAD_MODELS_FAULTS] == done.stderr.splitlines()


@pytest.mark.parametrize("command", ["check", "serve"])
def test_faulty_settings_are_refused_with_every_fault(folder, command):
    """The same for cortex.toml."""
    write(folder, "", settings='modles_config = "x"\n[[neurons]]\nname = "a"')

    done = cortex(command, "-c", folder / "cortex.toml")

    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2
    assert f"{folder / 'cortex.toml'}:2: modles_config" in done.stderr
    assert f"{folder / 'cortex.toml'}:3: neurons[0].endpoint" in done.stderr


def test_check_configured_but_missing_files_are_faults(folder):
    """Without a configured models.toml no alias would work."""
    (folder / "models.toml").unlink()

    missing_models = cortex("check", "-c", folder / "cortex.toml")
    missing_config = cortex("check", "-c", folder / "nowhere.toml")

    assert 1 == missing_models.returncode == missing_config.returncode
    assert [f"error: {folder / 'models.toml'}: cannot be read: No such file or directory"] == (
        missing_models.stderr.splitlines()
    )
    assert [f"error: {folder / 'nowhere.toml'}: cannot be read: No such file or directory"] == (
        missing_config.stderr.splitlines()
    )


def test_check_warns_once_and_passes(folder):
    """Warnings go to stderr, once, and the exit code stays 0."""
    write(folder, SHADOWING)

    done = cortex("check", "-c", folder / "cortex.toml", CORTEX_PROT="1")

    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"read {folder / 'cortex.toml'}",
        f"read {folder / 'models.toml'}",
        "ok: 0 neurons, 2 models, 1 aliases",
    ]
    warnings = done.stderr.splitlines()
    assert len(warnings) == 2
    assert warnings[0].startswith("warning: CORTEX_PROT: is not a setting of cortex; ignored")
    assert warnings[1].startswith(f"warning: {folder / 'models.toml'}:8: aliases.a: hides the model of the same name")


@pytest.mark.parametrize("command", ["check", "serve"])
def test_no_config_and_no_neurons_is_an_error_with_a_hint(command, tmp_path):
    """Usually it is the wrong directory."""
    done = cortex(command, cwd=tmp_path)

    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no cortex.toml (looked for cortex.toml and /etc/cortex/cortex.toml) and no neuron" in done.stderr
    assert "`cortex init`" in done.stderr
    assert "`cortex demo`" in done.stderr


def test_check_without_a_config_says_so(tmp_path):
    """The environment may name neurons."""
    done = cortex("check", cwd=tmp_path, CORTEX_NEURONS='[{name="a",endpoint="http://a:1"}]')

    assert (done.returncode, done.stdout) == (0, "ok: 1 neurons, 0 models, 0 aliases\n")
    assert "warning: there is no cortex.toml" in done.stderr


MODEL = '[[models]]\nid = "Org/Model"\nharness = "h"\n'


@pytest.mark.parametrize(
    ("models", "settings", "warning"),
    [
        (f'{MODEL}pinned_on = ["best"]\n', "", "there is no such neuron; did you mean 'beast'?"),
        (f'{MODEL}[aliases]\nx = "org/model"\n', "", "upper and lower case; did you mean 'Org/Model'"),
        (f'{MODEL}[aliases.x]\ntarget = "Org/Model"\nfallback = ["org/model"]\n', "", "differs from a model only in"),
        (f'{MODEL}[aliases.x]\ntarget = "Org/Model"\nfallback = ["Org/Model"]\n', "", "to 'Org/Model', its own target"),
        (MODEL, 'spool_dir = "/no/such/directory"', "gateway.spool_dir: is not a directory"),
        (MODEL, '[audit]\npath = "no/such/audit.jsonl"', "audit.path: cannot be created"),
        (MODEL, '[audit]\nhistory = "no/such/history"', "audit.history: cannot be created"),
        (MODEL, '[store]\nurl = "sqlite:///${HOME}/c.db"', "store.url: contains ${...}, which cortex does not replace"),
    ],
)  # fmt: skip
def test_check_finds(folder, models, settings, warning):
    """Mistakes that neither file has alone, or that are valid and surely not meant. Exit code 0."""
    write(folder, models)
    config = folder / "cortex.toml"
    beast = '[[neurons]]\nname = "beast"\nendpoint = "http://beast:13131"\n'
    config.write_text(f"{config.read_text()}{settings}\n{beast}")

    done = cortex("check", "-c", config)

    assert done.returncode == 0, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: ")
    assert warning in line


def test_check_finds_what_this_user_cannot_write(folder, monkeypatch):
    """Patched, because root, who may run this test, can write everywhere."""
    settings = load(folder / "cortex.toml", {}).settings
    assert list(cross_check(settings, Catalogue(), ())) == []
    monkeypatch.setattr(os, "access", lambda *_: False)

    found = [(fault.key, fault.message) for fault in cross_check(settings, Catalogue(), ())]

    records = ("audit.path", "audit.history", "audit.rollouts")
    assert found == [
        *((key, "cannot be created by this user") for key in records),
        ("gateway.spool_dir", "cannot be written by this user"),
    ]


@pytest.mark.parametrize(
    ("listen", "endpoint", "key"),
    [
        ("127.0.0.1:4000", "http://localhost:4000", "listen"),
        ("0.0.0.0:4000", "http://127.0.0.1:4000/", "listen"),
        ("0.0.0.0:4000", f"http://{socket.gethostname()}:4000", "listen"),
        ("10.0.0.1:4000", "http://10.0.0.1:4000", "listen"),
        ("0.0.0.0:4000", "http://localhost:4001", "metrics_listen"),
    ],
)
def test_neuron_that_is_this_gateway_is_refused(folder, listen, endpoint, key):
    """A request would go round until its deadline."""
    text = f'[gateway]\nlisten = "{listen}"\nmetrics_listen = "0.0.0.0:4001"\n[[neurons]]\nname = "a"\n'
    (folder / "cortex.toml").write_text(f'models_config = "models.toml"\n{text}endpoint = "{endpoint}"\n')

    done = CliRunner().invoke(main.main, ["check", "-c", str(folder / "cortex.toml")])

    assert done.exit_code == 1
    assert f"neurons[0].endpoint: is this gateway's own address (gateway.{key})" in done.stderr


def test_neuron_on_another_host_or_port_is_no_gateway(folder):
    """The same port elsewhere, and another port here."""
    text = '[gateway]\nlisten = "127.0.0.1:4000"\n'
    for number, endpoint in enumerate(("http://beast:4000", "http://127.0.0.1:4002")):
        text += f'[[neurons]]\nname = "n{number}"\nendpoint = "{endpoint}"\n'
    (folder / "cortex.toml").write_text(f'models_config = "models.toml"\n{text}')

    assert cortex("check", "-c", folder / "cortex.toml").returncode == 0


def test_config_of_the_working_directory_is_found(folder):
    """Without -c, ./cortex.toml counts."""
    write(folder, BAD_MODELS)

    assert cortex("check", cwd=folder).returncode == 1


def test_environment_names_the_config(folder, tmp_path_factory):
    """CORTEX_CONFIG works like -c, and is not reported as an unknown setting."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    done = cortex("check", cwd=elsewhere, CORTEX_CONFIG=str(folder / "cortex.toml"))

    assert (done.returncode, done.stderr) == (0, "")


def test_serve_ends_with_code_0_on_sigterm(folder):
    """As systemd sends it. The log is JSON because stderr is not a terminal."""
    with running_cortex("serve", "-c", folder / "cortex.toml") as process:
        logged = []
        for line in process.popen.stderr:
            logged.append(json.loads(line))
            if logged[-1]["event"] == "listening":
                break
        process.popen.send_signal(signal.SIGTERM)
        code, out, _ = process.end()

    assert logged[-1]["event"] == "listening"
    assert (code, out) == (0, "")


def test_serve_port_taken_is_one_line(folder):
    """The address at fault, exit code 1, no traceback."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"

        done = cortex("serve", "-c", folder / "cortex.toml", CORTEX_GATEWAY__LISTEN=address, CORTEX_LOG__LEVEL="error")

    assert done.returncode == 1
    assert done.stderr == (
        f"cortex: cannot listen on {address}: Address already in use; if that is another gateway with the same state"
        " directory, `cortex serve --takeover` replaces it\n"
    )


def test_serve_with_an_invalid_host_name_is_one_line(folder):
    """The resolver raises UnicodeError for two dots in a row."""
    done = cortex("serve", "-c", folder / "cortex.toml", CORTEX_GATEWAY__LISTEN="a..b:1", CORTEX_LOG__LEVEL="error")

    assert done.returncode == 1
    assert done.stderr == "cortex: cannot listen on a..b:1: 'a..b' is not a valid host name\n"


# status.


@pytest.fixture(scope="module")
def demo_and_key(tmp_path_factory):
    """The settings of a running gateway, and its key."""
    folder = tmp_path_factory.mktemp("demo")
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 50) as process:
        printed = process.read_until("Ctrl-C ends it")
        yield load(folder / "cortex.toml", {}).settings, key_in(printed)
        process.interrupt()
        process.end()


@pytest.fixture
def demo(demo_and_key):
    return demo_and_key[0]


@pytest.fixture
def demo_key(demo_and_key):
    return demo_and_key[1]


def run_status(settings, *options, token=None):
    endpoint, admin = (f"http://{listen}" for listen in (settings.gateway.listen, settings.gateway.metrics_listen))
    arguments = ["status", "-e", endpoint, "--admin", admin, *options]
    return CliRunner().invoke(main.main, arguments, env={"CORTEX_KEY": token, "COLUMNS": "200"})


def test_status_without_token_shows_the_public_part(demo):
    """Health, neurons with the size of their models, models and aliases."""
    result = run_status(demo)

    assert result.exit_code == 0
    assert "3 of 3 neurons healthy   catalogue generation 1" in result.output
    assert "VRAM of models MB" in result.output
    assert re.search(r"Qwen/Qwen3-1.7B +benjy +loaded +beast, benjy, quadbrat\n +quadbrat +loaded", result.output)
    assert "helexa/large" in result.output
    assert "leases" not in result.output


def test_status_with_token_shows_devices_and_leases(demo, demo_key):
    """With every device and its memory."""
    result = run_status(demo, token=demo_key)

    assert result.exit_code == 0
    assert "leases" in result.output
    assert result.output.count("/ 24576") == 2


def test_status_with_wrong_token_shows_the_public_part_and_the_error(demo):
    """A mistyped token must not hide the public part."""
    result = run_status(demo, token="wrong")

    assert result.exit_code == 0
    assert "the gateway rejects the key: the credentials are no key of this gateway" in result.output
    assert "helexa/large" in result.output


def test_status_json_is_one_object(demo, demo_key):
    """The JSON that the tables are made from."""
    state = json.loads(run_status(demo, "--json", token=demo_key).output)

    assert {"health", "models", "fleet", "requests"} == state.keys()
    assert state["health"]["status"] == "ok"
    assert [node["name"] for node in state["fleet"]["nodes"]] == ["beast", "benjy", "quadbrat"]


def test_status_watch_redraws_and_outlives_the_gateway(tmp_path):
    """If the gateway stops, it says so and keeps trying. Ctrl-C ends it with exit code 0."""
    with running_cortex("demo", "--dir", tmp_path / "demo", "--port", 0, "--speed", 50) as gateway:
        gateway.read_until("Ctrl-C ends it")
        listen = load(tmp_path / "demo" / "cortex.toml", {}).settings.gateway.listen
        with on_a_terminal("status", "--watch", "-e", f"http://{listen}") as watching:
            watching.read_until("neurons healthy", times=2)
            gateway.interrupt()
            gateway.end()
            watching.read_until("still trying", times=1)
            watching.popen.send_signal(signal.SIGINT)
            assert watching.popen.wait(END_S) == 0


def test_status_unreachable_is_one_line_and_code_2():
    """The URL and the reason on stderr."""
    with socket.socket() as unused:  # bound but not listening, so that no other process answers there
        unused.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
        result = CliRunner().invoke(main.main, ["status", "-e", endpoint])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert [f"cortex status: cannot reach {endpoint}/health: Connection refused; --endpoint sets the address"] == (
        result.stderr.splitlines()
    )


@pytest.mark.parametrize("command", [["explain", "some-request"], ["drain", "beast"], ["undrain", "beast"]])
def test_missing_key_error_names_the_environment_variable(command):
    """A secret on the command line is visible in `ps`."""
    result = CliRunner().invoke(main.main, command, env={"CORTEX_ADMIN__TOKEN": None, "CORTEX_KEY": None})

    assert result.exit_code == 1
    assert "CORTEX_KEY" in result.output


@pytest.mark.parametrize("endpoint", ["localhost:31313", "http://[", "http://:99999"])
def test_status_with_an_invalid_url_is_code_2(endpoint):
    """One line on stderr, no traceback."""
    result = CliRunner().invoke(main.main, ["status", "-e", endpoint])

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def other_server():
    """An HTTP server that is not a gateway; it answers every request with `body`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-length", str(len(self.server.body)))
            self.end_headers()
            self.wfile.write(self.server.body)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"ok": true}'])
def test_status_of_another_server_is_code_2(other_server, body):
    """As with a wrong port."""
    other_server.body = body

    result = CliRunner().invoke(main.main, ["status", "-e", f"http://127.0.0.1:{other_server.server_port}"])

    assert result.exit_code == 2
    assert "is not a cortex gateway (it answered with status 200)" in result.stderr


def test_status_shows_a_refused_catalogue_with_every_fault(capsys):
    """The operator must see that the file on disk is not in force."""
    faults = [
        {"line": 3, "key": "models[0].min_device", "message": "unknown key", "hint": "did you mean `min_devices`?"},
        {"line": None, "key": None, "message": "the file is empty", "hint": None},
    ]
    catalogue = {"generation": 7, "path": "/etc/m.toml", "error": {"message": "", "faults": faults}}
    health = {"status": "impaired", "nodes": {"healthy": 1, "total": 2}, "catalogue": catalogue}

    console().print(status_view.render({"health": health, "models": []}))

    shown = capsys.readouterr().out
    assert "impaired   1 of 2 neurons healthy   catalogue generation 7 (/etc/m.toml)" in shown
    assert "NOT in force; generation 7 stays in force" in shown
    assert "/etc/m.toml:3: models[0].min_device: unknown key; did you mean `min_devices`?" in shown
    assert "the file is empty" in shown


def test_status_shows_swaps_that_are_not_complete(capsys):
    """A warming swap with its phase, a failed one with its reason."""
    warming = {
        "alias": "x", "in_force": "old", "wanted": "new", "state": "warming", "phase": "load", "model": "new",
        "elapsed_s": 12.4, "allowed_s": 1800, "reason": None,
    }  # fmt: skip
    failed = dict.fromkeys(warming) | {"alias": "y", "in_force": "a", "wanted": "[b 1, c 1]", "state": "failed"}
    catalogue = {"generation": 3, "path": "models.toml", "error": None}
    health = {"status": "impaired", "nodes": {"healthy": 1, "total": 1}, "catalogue": catalogue}

    swaps = [warming, failed | {"reason": "no room"}]
    console().print(status_view.render({"health": health | {"swaps": swaps}, "models": []}))

    shown = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "x old new warming: load 12 s -" in shown
    assert "y a [b 1, c 1] failed - no room" in shown


def test_status_shows_an_audit_log_that_cannot_be_written(capsys):
    """Swaps continue, but the operator must know that lines may be missing."""
    catalogue = {"generation": 1, "path": None, "error": None}
    audit = {"error": "models.audit.jsonl: No space left on device", "pending": 3, "lost": 0}
    health = {"status": "ok", "nodes": {"healthy": 1, "total": 1}, "catalogue": catalogue, "audit": audit}

    console().print(status_view.render({"health": health, "models": []}))

    shown = " ".join(capsys.readouterr().out.split())
    assert "the audit log cannot be written: models.audit.jsonl: No space left on device; 3 lines wait" in shown


@pytest.mark.parametrize(
    ("idle_s", "text"),
    [(0.4, "0 s ago"), (119, "119 s ago"), (774, "12 min ago"), (9_000, "2 h ago"), (1_000_000, "11 days ago")],
)
def test_status_shows_the_last_use_in_a_suitable_unit(capsys, idle_s, text):
    """A unit is used from two of it on."""
    place = {"node": "beast", "status": "loaded", "vram_estimate_mb": 1}
    model = {"id": "m", "alias_of": None, "locations": [place], "feasible_on": []}
    replica = {"id": "m", "idle_s": idle_s, "leases": 0}

    console().print(status_view._models([model], [{"name": "beast", "models": [replica]}]))

    assert text in capsys.readouterr().out


def test_status_prints_names_without_markup(capsys):
    """Names come from operators and neurons: `[/b]` and `:smile:` are printed unchanged."""
    model = {"id": "[/b] :smile:", "locations": [], "feasible_on": [], "loaded": False}
    catalogue = {"generation": 1, "path": None, "error": None}
    health = {"status": "ok", "nodes": {"healthy": 0, "total": 0}, "catalogue": catalogue}

    console().print(status_view.render({"health": health, "models": [model]}))

    assert "[/b] :smile:" in capsys.readouterr().out
