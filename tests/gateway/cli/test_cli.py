"""The command line: what it says, where, and with which exit code. Real processes where logs and signals count."""

import json
import re
import signal
import socket
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import click
import pytest
from click.testing import CliRunner
from fakes.process import END_S, cortex, on_a_terminal, running_cortex

from gateway import __version__
from gateway.cli import main
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
    """A config that any port will do for, beside a catalogue each test writes."""
    write(tmp_path, "models = []\n")
    return tmp_path


def write(folder, models, settings=""):
    gateway = '[gateway]\nlisten = "127.0.0.1:0"\nmetrics_listen = "127.0.0.1:0"\n'
    (folder / "cortex.toml").write_text(f'models_config = "models.toml"\n{settings}\n{gateway}')
    (folder / "models.toml").write_text(models)


# What it says of itself.


def test_version_is_the_packages():
    """`cortex --version` names command and version."""
    result = CliRunner().invoke(main.main, ["--version"])

    assert f"cortex, version {__version__}\n" == result.output


@pytest.mark.parametrize("command", sorted(main.main.commands))
def test_help_explains_every_option(command):
    """Nobody should have to read the source to know what an option does, or what happens without it."""
    options = [param for param in main.main.commands[command].params if isinstance(param, click.Option)]

    result = CliRunner().invoke(main.main, [command, "--help"])

    assert result.exit_code == 0
    assert [option.name for option in options if not option.help] == []
    assert [
        option.name
        for option in options
        if not (option.is_flag or option.required or option.show_default or "Without it" in option.help)
    ] == []


# check and serve: one loading code.


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
    """A catalogue that was configured and is not there would void every alias, silently."""
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
    """Warnings refuse nothing: on stderr, once, and the answer on stdout."""
    write(folder, SHADOWING)

    done = cortex("check", "-c", folder / "cortex.toml", CORTEX_PROT="1")

    assert done.returncode == 0
    assert done.stdout == "ok: 0 neurons, 2 models, 1 aliases\n"
    told = done.stderr.splitlines()
    assert len(told) == 2
    assert told[0].startswith("warning: CORTEX_PROT: is not a setting of cortex; ignored")
    assert told[1].startswith(f"warning: {folder / 'models.toml'}:8: aliases.a: hides the model of the same name")


def test_config_of_the_working_directory_is_found(folder):
    """Without -c, ./cortex.toml counts."""
    write(folder, BAD_MODELS)

    assert cortex("check", cwd=folder).returncode == 1


def test_environment_names_the_config(folder, tmp_path_factory):
    """CORTEX_CONFIG is -c for container files, and no unknown setting."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    done = cortex("check", cwd=elsewhere, CORTEX_CONFIG=str(folder / "cortex.toml"))

    assert (done.returncode, done.stderr) == (0, "")


def test_serve_ends_with_code_0_on_sigterm(folder):
    """What systemd sends; it has listened by then, and logged JSON because stderr is no terminal."""
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
    assert done.stderr == f"cortex: cannot listen on {address}: Address already in use\n"


def test_serve_on_no_hosts_name_is_one_line(folder):
    """A dot too many: resolvers have an exception of their own for that."""
    done = cortex("serve", "-c", folder / "cortex.toml", CORTEX_GATEWAY__LISTEN="a..b:1", CORTEX_LOG__LEVEL="error")

    assert done.returncode == 1
    assert done.stderr == "cortex: cannot listen on a..b:1: 'a..b' is not a valid host name\n"


# status.


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A gateway to look at, with its own settings."""
    folder = tmp_path_factory.mktemp("demo")
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 50) as process:
        process.read_until("Ctrl-C ends it")
        yield load(folder / "cortex.toml", {}).settings
        process.interrupt()
        process.end()


def look(settings, *options, token=None):
    endpoint, admin = (f"http://{listen}" for listen in (settings.gateway.listen, settings.gateway.metrics_listen))
    arguments = ["status", "-e", endpoint, "--admin", admin, *options]
    return CliRunner().invoke(main.main, arguments, env={"CORTEX_ADMIN__TOKEN": token, "COLUMNS": "200"})


def test_status_without_token_shows_what_everybody_may_see(demo):
    """Health, neurons by what they hold, models and aliases."""
    result = look(demo)

    assert result.exit_code == 0
    assert "3 of 3 neurons healthy   catalogue generation 1" in result.output
    assert "VRAM held MB" in result.output
    assert re.search(r"Qwen/Qwen3-1.7B +benjy +loaded +beast, benjy, quadbrat\n +quadbrat +loaded", result.output)
    assert "helexa/large" in result.output
    assert "leases" not in result.output


def test_status_with_token_shows_devices_and_leases(demo):
    """What operators may see: every device with its memory."""
    result = look(demo, token=demo.admin.token)

    assert result.exit_code == 0
    assert "leases" in result.output
    assert result.output.count("/ 24576") == 2


def test_status_with_wrong_token_says_so_and_shows_the_rest(demo):
    """A mistyped token must not hide the public part in a bad hour."""
    result = look(demo, token="wrong")

    assert result.exit_code == 0
    assert "says 401: wrong admin token" in result.output
    assert "helexa/large" in result.output


def test_status_json_is_one_object(demo):
    """For programs: the same as the tables were made from."""
    told = json.loads(look(demo, "--json", token=demo.admin.token).output)

    assert {"health", "models", "fleet", "requests"} == told.keys()
    assert told["health"]["status"] == "ok"
    assert [node["name"] for node in told["fleet"]["nodes"]] == ["beast", "benjy", "quadbrat"]


def test_status_watch_redraws_and_outlives_the_gateway(tmp_path):
    """On a terminal: again and again, in its place; a gateway that goes away is told and looked for. Ctrl-C ends it."""
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
    """Nobody there: say who was asked, and why not."""
    with socket.socket() as deaf:  # nobody else's either, for as long as it is bound
        deaf.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        result = CliRunner().invoke(main.main, ["status", "-e", endpoint])

    assert result.exit_code == 2
    assert result.stdout == ""
    assert [f"cortex status: no answer from {endpoint}/health: [Errno 111] Connection refused"] == (
        result.stderr.splitlines()
    )


@pytest.mark.parametrize("command", [["explain", "some-request"], ["drain", "beast"], ["undrain", "beast"]])
def test_missing_token_says_where_it_may_come_from(command):
    """Nobody types a secret where `ps` shows it, for want of being told of the environment."""
    result = CliRunner().invoke(main.main, command, env={"CORTEX_ADMIN__TOKEN": None})

    assert result.exit_code == 1
    assert "CORTEX_ADMIN__TOKEN" in result.output


@pytest.mark.parametrize("endpoint", ["localhost:31313", "http://[", "http://:99999"])
def test_status_of_no_url_is_code_2(endpoint):
    """A typing mistake is answered, not crashed on."""
    result = CliRunner().invoke(main.main, ["status", "-e", endpoint])

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1


@pytest.fixture
def elsewhere():
    """Somebody else's HTTP server: answers everything with the body it is told to."""

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
def test_status_of_another_server_is_code_2(elsewhere, body):
    """The wrong port often has something else on it."""
    elsewhere.body = body

    result = CliRunner().invoke(main.main, ["status", "-e", f"http://127.0.0.1:{elsewhere.server_port}"])

    assert result.exit_code == 2
    assert "is not a cortex gateway's (status 200)" in result.stderr


def test_status_shows_a_refused_catalogue_with_every_fault(capsys):
    """The one thing an operator must not overlook: the file on disk is not what is in force."""
    faults = [
        {"line": 3, "key": "models[0].min_device", "message": "unknown key", "hint": "did you mean `min_devices`?"},
        {"line": None, "key": None, "message": "the file is empty", "hint": None},
    ]
    catalogue = {"generation": 7, "path": "/etc/m.toml", "error": {"message": "", "faults": faults}}
    health = {"status": "impaired", "nodes": {"healthy": 1, "total": 2}, "catalogue": catalogue}

    status_view._console().print(status_view._render({"health": health, "models": []}))

    shown = capsys.readouterr().out
    assert "impaired   1 of 2 neurons healthy   catalogue generation 7 (/etc/m.toml)" in shown
    assert "NOT in force; generation 7 stays in force" in shown
    assert "line 3: models[0].min_device: unknown key (did you mean `min_devices`?)" in shown
    assert "the file is empty" in shown


def test_status_shows_aliases_that_are_not_where_their_file_wants_them(capsys):
    """The one on its way with what it waits for, the other with why it will not move."""
    on_its_way = {
        "alias": "x", "in_force": "old", "wanted": "new", "state": "warming", "phase": "load", "model": "new",
        "elapsed_s": 12.4, "allowed_s": 1800, "reason": None,
    }  # fmt: skip
    stuck = dict.fromkeys(on_its_way) | {"alias": "y", "in_force": "a", "wanted": "[b 1, c 1]", "state": "failed"}
    catalogue = {"generation": 3, "path": "models.toml", "error": None}
    health = {"status": "impaired", "nodes": {"healthy": 1, "total": 1}, "catalogue": catalogue}

    swaps = [on_its_way, stuck | {"reason": "no room"}]
    status_view._console().print(status_view._render({"health": health | {"swaps": swaps}, "models": []}))

    told = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "x old new warming: load 12 s -" in told
    assert "y a [b 1, c 1] failed - no room" in told


def test_status_shows_a_trail_that_cannot_be_written(capsys):
    """Swaps go on; who relies on the trail must hear of it."""
    catalogue = {"generation": 1, "path": None, "error": None}
    audit = {"error": "models.audit.jsonl: No space left on device", "pending": 3, "lost": 0}
    health = {"status": "ok", "nodes": {"healthy": 1, "total": 1}, "catalogue": catalogue, "audit": audit}

    status_view._console().print(status_view._render({"health": health, "models": []}))

    shown = " ".join(capsys.readouterr().out.split())
    assert "the audit trail cannot be written: models.audit.jsonl: No space left on device; 3 lines wait" in shown


@pytest.mark.parametrize(
    ("idle_s", "told"),
    [(0.4, "0 s ago"), (119, "119 s ago"), (774, "12 min ago"), (9_000, "2 h ago"), (1_000_000, "11 days ago")],
)
def test_status_says_when_a_model_was_last_used_in_units_one_can_picture(capsys, idle_s, told):
    """Two of a unit before it is used."""
    place = {"node": "beast", "status": "loaded", "vram_estimate_mb": 1}
    model = {"id": "m", "alias_of": None, "locations": [place], "feasible_on": []}
    held = {"id": "m", "idle_s": idle_s, "leases": 0}

    status_view._console().print(status_view._models([model], [{"name": "beast", "models": [held]}]))

    assert told in capsys.readouterr().out


def test_status_shows_odd_names_as_they_are(capsys):
    """Names come from operators and neurons: `[/b]` and `:smile:` are names here, no markup."""
    model = {"id": "[/b] :smile:", "locations": [], "feasible_on": [], "loaded": False}
    catalogue = {"generation": 1, "path": None, "error": None}
    health = {"status": "ok", "nodes": {"healthy": 0, "total": 0}, "catalogue": catalogue}

    status_view._console().print(status_view._render({"health": health, "models": [model]}))

    assert "[/b] :smile:" in capsys.readouterr().out
