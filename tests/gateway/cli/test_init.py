"""`cortex init`: both files for the neurons and engines that answer."""

import json
import stat
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest
from click.testing import CliRunner

from catalogue.load import parse
from gateway.cli import engine_search, main
from gateway.cli.engine_search import InvalidHost, endpoints_on
from gateway.config.load import load

NEURON = {
    "/discovery": {"hostname": "beast", "devices": [], "harnesses": ["vllm"]},
    "/models": [{"id": "Qwen/Qwen3-8B", "harness": "vllm", "status": "loaded"}, {"no": "id"}],
}
VLLM = {"/v1/models": {"data": [{"id": "org/one", "owned_by": "vllm"}, {"id": 'a"b', "owned_by": "vllm"}]}}
UNKNOWN = {"/v1/models": {"data": []}}
NO_ENGINE = {"/": {"hello": "world"}}


@pytest.fixture
def server():
    """Starts servers that answer with JSON by path; returns host:port."""
    with ExitStack() as stack:

        def start(answers):
            class Handler(BaseHTTPRequestHandler):
                def do_GET(self):
                    body = json.dumps(answers.get(self.path, {})).encode()
                    self.send_response(200 if self.path in answers else 404)
                    self.send_header("content-length", str(len(body)))
                    self.end_headers()
                    self.wfile.write(body)

                def log_message(self, *_):
                    pass

            httpd = stack.enter_context(HTTPServer(("127.0.0.1", 0), Handler))
            thread = Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(httpd.shutdown)
            return f"127.0.0.1:{httpd.server_port}"

        yield start


def run(*arguments):
    return CliRunner().invoke(main.main, ["init", *map(str, arguments)])


def test_files_are_written_for_what_answers(server, tmp_path):
    """Both load as `serve` loads them; the file that secrets belong in is for its owner only."""
    hosts = [server(answers) for answers in (NEURON, VLLM, UNKNOWN, NO_ENGINE)]
    folder = tmp_path / "new" / "folder"

    done = run("--dir", folder, *(f"--host={host}" for host in hosts))

    assert done.exit_code == 0, done.output
    settings = load(folder / "cortex.toml", {}).settings
    assert [(each.name, each.kind, each.engine) for each in settings.neurons] == [
        ("beast", "neuron", None),
        ("127.0.0.1", "openai", "vllm"),
        ("127.0.0.1-2", "openai", None),
    ]
    assert settings.neurons[0].endpoint == f"http://{hosts[0]}"
    assert settings.admin.token is None
    assert stat.S_IMODE((folder / "cortex.toml").stat().st_mode) == 0o600
    catalogue = parse((folder / "models.toml").read_bytes(), path="m", generation=1, loaded_at=0)
    assert {model: profile.harness for model, profile in catalogue.models.items()} == {"Qwen/Qwen3-8B": "vllm"}
    assert catalogue.aliases["default"].target == "Qwen/Qwen3-8B"
    assert f"wrote {folder / 'cortex.toml'}" in done.output


def test_engine_without_models_gives_an_empty_catalogue(server, tmp_path):
    """Which is valid."""
    assert run("--dir", tmp_path, "--host", server(UNKNOWN)).exit_code == 0
    assert not parse((tmp_path / "models.toml").read_bytes(), path="m", generation=1, loaded_at=0).aliases


def test_existing_files_are_kept(server, tmp_path):
    """Unless --overwrite is given."""
    (tmp_path / "models.toml").write_text("# mine\n")
    host = server(VLLM)

    refused = run("--dir", tmp_path, "--host", host)
    assert (refused.exit_code, (tmp_path / "models.toml").read_text()) == (1, "# mine\n")
    assert "--overwrite" in refused.stderr

    assert run("--dir", tmp_path, "--host", host, "--overwrite").exit_code == 0
    assert "org/one" in (tmp_path / "models.toml").read_text()


@pytest.mark.parametrize("host", ["127.0.0.1:9", "no-such-host.invalid"])
def test_nothing_is_written_if_nothing_answers(tmp_path, host):
    """Exit code 1; the addresses are named."""
    done = run("--dir", tmp_path, "--host", host)

    assert done.exit_code == 1
    assert "nothing was written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_host_without_a_port_is_asked_at_the_usual_ports():
    """A URL and a port are taken as they are; a pasted /v1 is dropped."""
    ports = engine_search.USUAL_PORTS
    assert endpoints_on("gpu-1") == [f"http://gpu-1:{port}" for port in ports]
    assert endpoints_on("gpu-1:8000") == ["http://gpu-1:8000"]
    assert endpoints_on("https://gpu-1/v1/") == ["https://gpu-1"]
    assert endpoints_on("[::1]")[0] == "http://[::1]:13131"
    for wrong in ("", "http://", "gpu:x", "ftp://a", "u:p@host"):
        with pytest.raises(InvalidHost):
            endpoints_on(wrong)


def test_in_a_script_this_host_is_asked(tmp_path, monkeypatch):
    """No terminal is there to answer a question."""
    asked = []
    monkeypatch.setattr("gateway.cli.commands.init.search", lambda endpoints: asked.extend(endpoints) or [])

    assert run("--dir", tmp_path).exit_code == 1
    assert asked[0] == "http://localhost:13131"
