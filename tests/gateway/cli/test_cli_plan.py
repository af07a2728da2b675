"""`cortex plan` and `cortex alias compare`, with a real gateway and without one."""

import json

import httpx
import pytest
from fakes.operator import LARGE, MIDDLE, SMALL, wait_until
from fakes.patience import SAFETY_NET_S

from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.toml_edit import set_alias
from gateway.cli.api_client import GatewayAddress
from gateway.config.load import load

# Plan.


def test_plan_of_the_file_in_force_is_nothing_to_do(operator):
    """Exit code 0."""
    assert "nothing to do" in operator.done("plan")


def test_plan_shows_what_a_file_would_change(operator, tmp_path):
    """Exit code 2; the catalogue in force does not change."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(operator.models.read_bytes(), "helexa/small", {LARGE: 1}))
    before = operator.in_force()

    output = operator.done("plan", wanted, code=2)

    assert f"helexa/small  {SMALL} -> {LARGE}" in output
    assert f"{LARGE} is loaded on beast" in output
    assert "VRAM, MB" in output
    assert operator.in_force() == before
    result = json.loads(operator.done("plan", wanted, "--json", code=2))
    assert result["aliases"][0]["placements"][0]["nodes"] == ["beast"]


def test_plan_of_an_impossible_change_says_what_it_needs(operator, tmp_path):
    """Exit code 1."""
    wanted = tmp_path / "wanted.toml"
    data = set_alias(operator.models.read_bytes(), "helexa/small", {"huge": 1})
    wanted.write_bytes(
        data + b'\n[[models]]\nid = "huge"\nharness = "x"\nmin_devices = 2\nmin_device_vram_mb = 48000\n'
    )

    assert "no neuron can hold huge: needs 2 devices of 48,000 MB" in operator.done("plan", wanted, code=1)


@pytest.mark.parametrize("offline", [(), ("--offline",)])
def test_plan_of_a_faulty_file_lists_every_fault(operator, tmp_path, offline):
    """Exit code 1, with line numbers of the given file."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_text('[aliases]\na = 7\nb = "a"\n')

    output = operator.done("plan", wanted, *offline, code=1)

    assert f"{wanted}:2: aliases.a: " in output
    assert f"{wanted}:3: aliases.b: " in output


def test_plan_offline_compares_with_the_last_version(operator, tmp_path):
    """Without a gateway, and so without its fleet."""
    operator.done("alias", "set", "helexa/small", MIDDLE, "--wait")
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(operator.models.read_bytes(), "helexa/small", {LARGE: 1}))

    output = operator.done("plan", wanted, "--offline", code=2)

    assert f"~alias helexa/small: {MIDDLE} -> {LARGE}" in output
    assert "VRAM" not in output


def test_plan_offline_without_a_trail_compares_with_the_configured_file(alone, tmp_path):
    """If that is the given file, there is nothing to compare with."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(alone.models.read_bytes(), "helexa/small", {LARGE: 1}))

    assert "~alias helexa/small" in alone.done("plan", wanted, "--offline", code=2)
    assert "nothing to compare" in alone("plan", "--offline").stderr


def test_plan_without_a_gateway_or_a_token_is_code_3(alone):
    """That is neither `no changes` nor `impossible`."""
    assert "--offline compares without a gateway" in alone("plan").stderr
    assert alone("plan").exit_code == 3
    assert "plans only for a key: set CORTEX_KEY" in alone("plan", CORTEX_KEY=None).stderr


# Compare.


def test_compare_shows_an_alias_beside_its_shadow(operator):
    """As a table and as JSON. Without a shadow the error says how to add one."""
    assert "has no shadow" in operator.done("alias", "compare", "helexa/large", code=1)
    assert "alias 'nobody' does not exist" in operator.done("alias", "compare", "nobody", code=1)
    shadowed = f'"helexa/small" = {{ target = "{SMALL}", shadow = {{ model = "{MIDDLE}", percent = 100 }} }}'
    lines = operator.models.read_text().splitlines(keepends=True)
    edited = [shadowed + "\n" if line.startswith('"helexa/small"') else line for line in lines]
    operator.edit("".join(edited).encode())
    wait_until(lambda: operator.in_force() == digest_of(operator.models.read_bytes()))
    assert "no requests compared yet" in operator.done("alias", "compare", "helexa/small")

    url = GatewayAddress.from_settings(load(operator.config, {}).settings).api
    body = {"model": "helexa/small", "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}
    with httpx.Client(trust_env=False, timeout=SAFETY_NET_S) as client:
        assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200
    wait_until(lambda: json.loads(operator.done("alias", "compare", "helexa/small", "--json"))["compared"] == 1)

    output = operator.done("alias", "compare", "helexa/small")
    assert f"only 1 compared; {MIDDLE} takes" in output
    assert "same answer" in output
    assert "stop 1" in output
