"""`cortex status`: what it shows of a gateway, and its errors."""

import json
import re
import signal
import socket
import ssl
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner
from fakes.operator import key_in
from fakes.process import END_S, on_a_terminal, running_cortex

from gateway.cli import main
from gateway.cli.terminal import console
from gateway.cli.views import status_view
from gateway.config.load import load

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


def test_status_loads_only_what_it_uses(monkeypatch):
    """The parser of metrics is for `--watch`, the system's certificates for https: 0.2 s of CPU."""
    program = "import sys, gateway.cli.commands.status; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "prometheus_client" not in done.stdout.split()

    monkeypatch.setattr(ssl, "create_default_context", None)
    result = CliRunner().invoke(main.main, ["status", "-e", "http://127.0.0.1:9"])
    assert (result.exit_code, "Connection refused" in result.stderr) == (2, True)


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

    text = "generation 7 stays in force: /etc/m.toml:3: models[0].min_device: unknown key"
    problem = {"code": "file_not_in_force", "subject": "/etc/m.toml", "since": 0, "text": text}
    console().print(status_view.render({"health": health | {"problems": [problem]}, "models": []}))

    shown = capsys.readouterr().out
    assert shown.count("unknown key") == 1
    assert shown.count("the file is empty") == 1


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
