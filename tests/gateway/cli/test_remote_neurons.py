"""`cortex neurons` over the network, and `cortex check` of the file of the neurons."""

import json

import pytest
from fakes.operator import Operator, wait_until
from fakes.process import cortex, running_cortex

from gateway.aliases.files.file_history import digest_of

CORTEX_TOML = """
models_config = "models.toml"
neurons_config = "neurons.toml"
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
[admin]
token = "secret"
"""
NEURONS_TOML = """\
[[neurons]]
name = "a"
endpoint = "http://127.0.0.1:9"
token = "hush-hush"
"""


@pytest.fixture
def operator(tmp_path):
    (tmp_path / "cortex.toml").write_text(CORTEX_TOML)
    (tmp_path / "neurons.toml").write_text(NEURONS_TOML)
    (tmp_path / "models.toml").write_text("models = []\n")
    return Operator(tmp_path)


def test_neurons_are_read_and_replaced_from_another_desk(operator, tmp_path):
    """Nothing but an address and a key is needed; secrets neither appear nor get lost."""
    with running_cortex("serve", "-c", operator.config) as process:
        admin = f"http://{json.loads(process.log_line('listening'))['metrics']}"
        env = {"CORTEX_URL": admin, "CORTEX_KEY": "secret", "CORTEX_CONFIG": str(tmp_path / "none.toml")}

        read = operator.done("neurons", "get", **env)
        assert "hush" not in read
        wanted = tmp_path / "wanted.toml"
        text, _, digest = read.partition("hash: ")
        wanted.write_text(text + '[[neurons]]\nname = "b"\nendpoint = "http://127.0.0.1:10"\n')
        put = operator.done("neurons", "put", wanted, "--if-match", digest.strip(), **env)
        assert '+name = "b"' in put
        assert put.splitlines()[-1] == "added b"
        assert (tmp_path / "neurons.toml").read_text().startswith(NEURONS_TOML)
        assert "differs from the one that If-Match names" in operator.done(
            "neurons", "put", wanted, "--if-match", digest.strip(), code=1, **env
        )
        assert operator.done("neurons", "put", wanted, **env).splitlines()[-1] == "no neuron changes"
        wait_until(lambda: "down" in operator.done("neurons", "list", **env))
        with_b = (tmp_path / "neurons.toml").read_bytes()
        editor = tmp_path / "editor"
        editor.write_text("#!/bin/sh\ngrep -q '\\*\\*\\*' $1 && sed -i 's/:10\"/:11\"/' $1\n")
        editor.chmod(0o700)
        edited = operator.done("neurons", "edit", EDITOR=str(editor), **env)
        assert edited.splitlines()[-1] == "changed b (endpoint)"
        assert (tmp_path / "neurons.toml").read_text().startswith(NEURONS_TOML)
        editor.write_text(f"#!/bin/sh\necho '# other' >> {tmp_path / 'neurons.toml'}\necho '# mine' >> $1\n")
        assert "differs from the one that If-Match names" in operator.done(
            "neurons", "edit", code=1, EDITOR=str(editor), **env
        )
        assert "# mine" not in (tmp_path / "neurons.toml").read_text()
        restored = operator.done("neurons", "rollback", "--to", digest_of(with_b)[:12], **env)
        assert restored.splitlines()[-1] == "changed b (endpoint)"
        assert (tmp_path / "neurons.toml").read_bytes() == with_b
        editor.write_text("#!/bin/sh\n")
        assert "saved nothing" in operator.done("neurons", "edit", EDITOR=str(editor), **env)
        wanted.write_text("neurons = [1]\n")
        assert "must be a table" in operator.done("neurons", "put", wanted, code=1, **env)
        process.interrupt()
        process.end()


def check(operator, code=0):
    """In a process of its own: it configures the log."""
    done = cortex("check", "-c", operator.config)
    assert done.returncode == code, done
    return done.stdout + done.stderr


def test_check_names_every_fault_of_both_files(operator, tmp_path):
    """And the file it read, if there is none."""
    assert f"read {tmp_path / 'neurons.toml'}" in check(operator)
    assert "ok: 1 neuron, " in check(operator)
    assert not (tmp_path / "neurons.history").exists()
    (tmp_path / "neurons.toml").write_text(NEURONS_TOML.replace("endpoint", "endpont"))
    (tmp_path / "models.toml").write_text("[[models]]\n")

    found = check(operator, code=1)
    assert "neurons.toml:3: neurons[0].endpont: unknown key `endpont`; did you mean `endpoint`?" in found
    assert "models.toml:1: models[0].id: is required and missing" in found
    assert "hush" not in found
    (tmp_path / "neurons.toml").unlink()
    assert "neurons.toml: cannot be read" in check(operator, code=1)


def test_neurons_in_both_files_are_refused(operator):
    operator.config.write_text(CORTEX_TOML + NEURONS_TOML)
    assert "neurons: must not be here beside neurons_config" in check(operator, code=1)
