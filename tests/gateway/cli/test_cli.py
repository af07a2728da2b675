"""The command line: help, `check` and `serve`. Real processes where logs and signals matter."""

import json
import os
import signal
import socket
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from fakes.cli_files import write
from fakes.process import cortex, running_cortex

from catalogue.models import Catalogue
from gateway import __version__
from gateway.aliases.cross_checks import cross_check
from gateway.cli import main
from gateway.config.load import load

BAD_MODELS = '[[models]]\nid = "a"\nmin_device = 1\n[aliases]\nx = ""\n'
BAD_MODELS_FAULTS = [
    "error: {path}:1: models[0].harness: is required and missing",
    "error: {path}:3: models[0].min_device: unknown key `min_device`; did you mean `min_devices`?",
    "error: {path}:5: aliases.x: has an empty target; name a model id, or remove the alias",
]
SHADOWING = '[[models]]\nid = "a"\nharness = "h"\n[[models]]\nid = "b"\nharness = "h"\n[aliases]\na = "b"\n'


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
        "ok: 0 neurons, 2 models, 1 alias",
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

    assert (done.returncode, done.stdout) == (0, "ok: 1 neuron, 0 models, 0 aliases\n")
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
