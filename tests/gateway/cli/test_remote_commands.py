"""Every operator command over the network: `--url` and a key, and no file of the gateway on this host."""

import json
import re
import stat
import time

import httpx
import pytest
from click.testing import CliRunner
from fakes.operator import Operator, key_in, wait_until
from fakes.patience import SAFETY_NET_S
from fakes.process import on_a_terminal, running_cortex

from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.toml_edit import set_alias
from gateway.cli import main

SMALL, MIDDLE, LARGE, COLD = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "Qwen/Qwen3-14B"


class Desk:
    """An operator's own machine: it knows an address and a key, in a folder without any file of the gateway."""

    def __init__(self, url, key, folder):
        self.url, self.key = url, key
        self._environment = {"CORTEX_URL": url, "CORTEX_KEY": key, "COLUMNS": "200", "XDG_CONFIG_HOME": str(folder)}

    def __call__(self, *arguments, **env):
        return CliRunner().invoke(main.main, [str(each) for each in arguments], env=self._environment | env)

    def done(self, *arguments, code=0, **env):
        """Run a command, check its exit code, and return its output."""
        result = self(*arguments, **env)
        assert result.exit_code == code, result.output
        return result.output


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """The gateway's host; the commands of these tests never see its files."""
    folder = tmp_path_factory.mktemp("host")
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 200) as process:
        yield Operator(folder, key_in(process.read_until("Ctrl-C ends it")))
        process.interrupt()
        process.end()


@pytest.fixture
def desk(host, tmp_path, monkeypatch):
    """A folder elsewhere. Afterwards the gateway has its first file again."""
    monkeypatch.chdir(tmp_path)
    original = host.models.read_bytes()
    yield Desk(f"http://{host.settings.gateway.metrics_listen}", host.key, tmp_path)
    host.edit(original)
    wait_until(lambda: host.in_force() == digest_of(original) and not host.health().get("swaps"))
    assert list(tmp_path.rglob("models.*")) == []


def test_day_of_an_operator(desk, host, tmp_path):
    """Show, set, roll back, plan, history, audit: as on the gateway's host."""
    before = host.models.read_bytes()
    assert "3 of 3 neurons" in desk.done("status")
    assert json.loads(desk.done("status", "--json"))["fleet"]["nodes"]
    assert f"helexa/small     {SMALL}" in desk.done("alias", "list")

    output = desk.done("alias", "set", "helexa/small", MIDDLE, "--wait")
    assert f"models.toml of {desk.url}: ~alias helexa/small: {SMALL} -> {MIDDLE}" in output
    assert "in force: generation" in output
    assert host.models.read_bytes() == set_alias(before, "helexa/small", {MIDDLE: 1})
    assert f"{MIDDLE}: beast loaded" in desk.done("alias", "show", "helexa/small")
    wait_until(lambda: "helexa/small" in desk.done("alias", "history", "--limit", 1))
    shown = desk.done("audit", "show")
    assert f"command: cortex alias set helexa/small {MIDDLE}" in shown
    assert re.search(r"operator \(key \w{10}, [^)]+\)", shown)
    assert "are intact" in desk.done("audit", "verify")

    desk.done("alias", "rollback", "--wait")
    assert host.models.read_bytes() == before
    assert "nothing to do" in desk.done("plan")
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(before, "helexa/small", {LARGE: 1}))
    assert f"helexa/small  {SMALL} -> {LARGE}" in desk.done("plan", wanted, code=2)
    assert "-alias helexa/balanced" in desk.done("alias", "remove", "helexa/balanced")
    assert "has no shadow" in desk.done("alias", "compare", "helexa/small", code=1)
    assert "has no failed swap" in desk.done("alias", "retry", "helexa/small", code=1)


def test_edits_are_refused_as_on_the_host(desk, host):
    """An unknown target, an unknown alias, an emptied file."""
    assert f"did you mean '{MIDDLE}'" in desk.done("alias", "set", "helexa/small", "qwen/qwen3-8b", code=1)
    assert "did you mean 'helexa/small'" in desk.done("alias", "remove", "helexa/smal", code=1)
    assert "names an alias, not a model" in desk.done("alias", "set", "helexa/small", "helexa/large", code=1)
    before = host.models.read_bytes()
    host.models.write_bytes(b"")

    refused = desk.done("alias", "set", "helexa/small", MIDDLE, code=1)
    assert refused.startswith(f"error: models.toml of {desk.url} on disk is not the file in force\nerror: ")
    assert "--from-disk" in refused
    assert host.models.read_bytes() == b""
    assert "valid again" in desk.done("alias", "rollback")
    assert host.models.read_bytes() == before


def test_parallel_edits_over_the_network_are_all_kept(desk, host):
    """One whose file has changed meanwhile starts again from the new one."""
    names = [f"parallel/{number}" for number in range(4)]
    arguments = ("--url", desk.url, "--key", host.key)
    processes = [running_cortex("alias", "set", name, SMALL, *arguments) for name in names]
    running = [process.__enter__() for process in processes]
    try:
        outcomes = [process.end() for process in running]
    finally:
        for process in processes:
            process.__exit__(None, None, None)

    assert [code for code, _, _ in outcomes] == [0] * 4, outcomes
    assert {each["name"] for each in json.loads(desk.done("alias", "list", "--json"))["aliases"]} >= set(names)


def test_rollout_over_the_network(desk, host):
    """Started, shown, ended; and followed to its end."""
    desk.done("alias", "rollout", "helexa/small", MIDDLE, "--every", "1h")
    assert "gets 5 %" in desk.done("alias", "rollout", "helexa/small", "--status")
    assert "already" in desk.done("alias", "rollout", "helexa/small", MIDDLE, code=1)
    assert "aborted" in desk.done("alias", "rollout", "helexa/small", "--abort")
    wait_until(lambda: "aborted by " in (host.lines()[-1].get("command") or ""))
    assert host.lines()[-1]["command"].startswith("rollout helexa/small: aborted by operator ")
    options = ("--steps", "50,100", "--every", "0s", "--guard", "none", "--wait")
    assert "gets all requests" in desk.done("alias", "rollout", "helexa/small", MIDDLE, *options)


def test_watched_rollout_is_redrawn_on_a_terminal(desk, host, tmp_path):
    """Progress and comparison in place, not line after line; it ends with the rollout."""
    env = {"CORTEX_URL": desk.url, "CORTEX_KEY": host.key, "XDG_CONFIG_HOME": str(tmp_path)}
    options = ("--steps", "50,100", "--every", "3s", "--guard", "none", "--watch")
    with on_a_terminal("alias", "rollout", "helexa/small", MIDDLE, *options, **env) as process:
        process.read_until("gets all requests", times=1)
        assert process.popen.wait(SAFETY_NET_S) == 0
    assert "of this step have passed" in process.screen
    assert "\x1b[1A" in process.screen, "the cursor goes up to draw over what it drew before"


def test_load_and_unload(desk):
    """Each returns once it is done; a load says how long earlier ones took."""
    assert f"{COLD}: loaded on" in desk.done("load", COLD)
    assert "already" in desk.done("load", COLD)
    assert f"{COLD}: unloaded from" in desk.done("unload", COLD)
    assert "earlier loads took" in desk.done("load", COLD)
    desk.done("unload", COLD, "--no-wait")
    assert "not found" in desk.done("load", "no/such", code=1)
    assert "is not on" in desk.done("unload", "no/such", code=1)
    assert "no neuron is called 'nowhere'" in desk.done("load", COLD, "--on", "nowhere", code=1)


def test_drain_and_undrain(desk):
    """By the admin port."""
    assert "quadbrat: drained" in desk.done("drain", "quadbrat")
    assert "quadbrat: open" in desk.done("undrain", "quadbrat")


def test_requests_and_explain(desk, host):
    """A request that has ended can be explained, and no longer be cancelled."""
    body = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}
    with httpx.Client(trust_env=False, timeout=SAFETY_NET_S) as client:
        url = f"http://{host.settings.gateway.listen}/v1/chat/completions"
        assert client.post(url, json=body, headers={"x-request-id": "from-a-desk"}).status_code == 200

    assert "0 running, 0 waiting" in desk.done("requests")
    assert json.loads(desk.done("requests", "--json")) == {"requests": []}
    assert "from-a-desk" in desk.done("explain", "from-a-desk")
    assert "is not running" in desk.done("requests", "--cancel", "from-a-desk", code=1)


def test_reload(desk, host):
    """The result; a faulty file is exit code 1 with its fault."""
    assert "unchanged: generation" in desk.done("reload")
    lines = host.models.read_bytes().count(b"\n")
    host.models.write_bytes(host.models.read_bytes() + b'x = "a\n')
    assert desk("reload").exit_code == 1
    assert desk("reload").stderr == (
        f"cortex reload: models.toml:{lines + 1}: not TOML: Illegal character '\\n'; "
        "a string must end on the line where it begins: close its quotes\n"
    )


# Profiles, and what is missing.


def test_gateway_by_name(desk, host, tmp_path):
    """`[gateways.NAME]` has the address and the key."""
    path = tmp_path / "cortex" / "config.toml"
    path.parent.mkdir()
    path.write_text(f'[gateways.prod]\nurl = "{desk.url}/"\nkey = "{host.key}"\n')
    path.chmod(stat.S_IRUSR | stat.S_IWUSR)

    assert "helexa/small" in desk.done("alias", "list", "--url", "prod", CORTEX_KEY=None)
    assert "unchanged" in desk.done("reload", CORTEX_URL="prod", CORTEX_KEY=None)
    unknown = desk.done("alias", "list", "--url", "prof", code=1)
    assert "has no [gateways.prof]" in unknown
    assert "did you mean 'prod'?" in unknown


@pytest.mark.parametrize(
    "text",
    [
        "[gateways.prod",
        "[gateways]\nprod = 1",
        "[gateways.prod]\nurl = 7",
        "[gateways.prod]\n",
        "[gateways.prod]\nurl = 'x:1'",
        "[gateways.prod]\nurl = 'http://a'\ntoken = 'x'",
    ],
)
def test_faulty_profile_is_one_line(desk, tmp_path, text):
    """The file is named; exit code 1, no traceback."""
    path = tmp_path / "cortex" / "config.toml"
    path.parent.mkdir()
    path.write_text(text)

    result = desk("status", "--url", "prod")

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"error: {path}: ")
    assert len(result.stderr.splitlines()) == 1


COMMANDS = [
    ("alias", "list"),
    ("alias", "set", "a", "b"),
    ("alias", "rollback"),
    ("alias", "rollout", "a", "b"),
    ("alias", "history"),
    ("audit", "show"),
    ("audit", "verify"),
    ("drain", "a"),
    ("explain", "a"),
    ("load", "a"),
    ("unload", "a"),
    ("reload",),
    ("requests",),
]


@pytest.mark.parametrize("command", [*COMMANDS, ("status",)], ids=" ".join)
def test_missing_and_wrong_key_are_told_apart(desk, command):
    """One line each, on stderr, without a traceback. A missing key names the variable."""
    missing, wrong = desk(*command, CORTEX_KEY=None), desk(*command, CORTEX_KEY="wrong")

    assert (missing.exit_code, wrong.exit_code) == (1, 1)
    assert "CORTEX_KEY" in missing.stderr
    assert "rejects" in wrong.stderr
    for result in (missing, wrong):
        assert "Traceback" not in result.output


@pytest.mark.parametrize("command", [*COMMANDS, ("status",), ("plan",)], ids=" ".join)
def test_gateway_that_does_not_answer_is_told(desk, command):
    """The address and the reason, within a second or two."""
    began = time.monotonic()
    result = desk(*command, CORTEX_URL="http://127.0.0.1:9")

    assert result.exit_code in {1, 2, 3}
    assert "cannot reach http://127.0.0.1:9" in result.stderr
    assert time.monotonic() - began < SAFETY_NET_S


READING = (("catalogue", "get"), ("alias", "list"), ("alias", "history"), ("audit", "show"), ("audit", "verify"))


@pytest.mark.parametrize(("command", "code"), [*((each, 2) for each in READING), (("alias", "set", "a", "b"), 1)])
def test_only_commands_that_read_exit_with_2_without_a_gateway(command, code):
    """Of an edit, 2 says that the file is written. Nothing is, without an answer."""
    env = {"CORTEX_URL": "http://127.0.0.1:9", "CORTEX_KEY": "ctx_k_secret"}
    assert CliRunner().invoke(main.main, command, env=env).exit_code == code


@pytest.mark.parametrize("command", [("status",), ("status", "--json"), ("top",)], ids=" ".join)
def test_status_with_a_mistyped_key_says_so(desk, command):
    """Exit code 1: the gateway answers, and refuses the key."""
    mistyped = f"{desk.key[:-1]}{'a' if desk.key[-1] != 'a' else 'b'}"
    result = desk(*command, CORTEX_KEY=mistyped)
    assert result.exit_code == 1, result.output
    assert "its checksum does not match" in result.stderr
    assert "--endpoint" not in result.stderr


def test_whole_file(desk, host, tmp_path):
    """`cortex catalogue` prints and replaces the whole file, and refuses a faulty one."""
    before = host.models.read_bytes()
    assert desk.done("catalogue", "get").encode() == before

    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(before, "helexa/tiny", {SMALL: 1}))
    output = desk.done("catalogue", "put", wanted, "--wait")
    assert f"models.toml of {desk.url}: +alias helexa/tiny -> {SMALL}" in output
    assert "in force: generation" in output
    assert host.models.read_bytes() == wanted.read_bytes()
    assert "this content already" in desk.done("catalogue", "put", wanted)

    wanted.write_text("models = 3\n")
    refused = desk("catalogue", "put", wanted)
    assert refused.exit_code == 1
    assert "nothing was written" in refused.output
    wanted.write_bytes(b"#" * ((1 << 20) + 1))
    assert "more than" in desk.done("catalogue", "put", wanted, code=1)


def test_edit_of_the_whole_file(desk, host, tmp_path):
    """`cortex catalogue edit` runs $EDITOR; a file that changed meanwhile is not overwritten."""
    editor = tmp_path / "editor"
    editor.write_text("#!/bin/sh\necho '# seen by an editor' >> \"$1\"\n")
    editor.chmod(0o700)
    desk.done("catalogue", "edit", EDITOR=str(editor))
    assert host.models.read_bytes().endswith(b"# seen by an editor\n")

    editor.write_text(f"#!/bin/sh\necho '# other' >> {host.models}\necho '# mine' >> \"$1\"\nsleep 0.5\n")
    refused = desk("catalogue", "edit", EDITOR=str(editor))
    assert refused.exit_code == 1
    assert "nothing was written" in refused.output
    assert b"# mine" not in host.models.read_bytes()

    editor.write_text("#!/bin/sh\n")
    assert "saved nothing" in desk.done("catalogue", "edit", EDITOR=str(editor))
