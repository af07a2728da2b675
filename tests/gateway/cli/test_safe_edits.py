"""Edits that cannot hurt: `cortex alias` when the file on disk is not the file in force, with and without a gateway."""

import json
import os
import shutil

import pytest
from fakes.operator import Operator, running_demo, wait_until
from fakes.process import running_cortex

from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.toml_edit import set_alias

SMALL, MIDDLE, LARGE, COLD = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "Qwen/Qwen3-14B"


def emptied(path):
    path.write_bytes(b"")


def blank(path):
    path.write_bytes(b"\n# nothing\n")


def deleted(path):
    path.unlink()


def broken(path):
    path.write_bytes(path.read_bytes() + b"[[models\n")


def not_utf8(path):
    path.write_bytes(b"\xff" + path.read_bytes())


def edited_by_hand(path):
    path.write_bytes(set_alias(path.read_bytes(), "by/hand", {SMALL: 1}))


def a_pipe(path):
    path.unlink()
    os.mkfifo(path)


def a_directory(path):
    path.unlink()
    path.mkdir()


def enormous(path):
    with path.open("r+b") as file:
        file.truncate(10 * 1024**3)  # sparse


REPLACED = [emptied, blank, deleted, broken, not_utf8, a_pipe, a_directory, enormous]


@pytest.fixture(scope="module")
def demo_operator(tmp_path_factory):
    """A demo gateway, which all tests of this file share."""
    with running_demo(tmp_path_factory.mktemp("demo")) as operator:
        yield operator


@pytest.fixture
def operator(demo_operator):
    """That gateway, with the models.toml that the demo wrote before and after the test."""
    original = demo_operator.models.read_bytes()
    yield demo_operator
    remove(demo_operator.models)
    demo_operator.edit(original)
    wait_until(lambda: demo_operator.in_force() == digest_of(original) and not demo_operator.health().get("swaps"))
    wait_until(lambda: demo_operator.lines()[-1]["file"] == digest_of(original))


def remove(path):
    if path.is_dir():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.fixture
def alone(demo_operator, tmp_path):
    """A copy of its files and records, and an address where no gateway answers."""
    for path in demo_operator.models.parent.iterdir():
        if path.suffix == ".new":  # the gateway is writing it
            continue
        copy = shutil.copytree if path.is_dir() else shutil.copy
        copy(path, tmp_path / path.name)
    settings = demo_operator.settings.gateway
    text = demo_operator.config.read_text().replace(str(settings.listen), "127.0.0.1:9")
    (tmp_path / "cortex.toml").write_text(text.replace(str(settings.metrics_listen), "127.0.0.1:10"))
    return Operator(tmp_path)


# Edits of a file that is not in force.


COMMANDS = {
    "set": ("set", "helexa/small", MIDDLE),
    "remove": ("remove", "helexa/small"),
    "rollout": ("rollout", "helexa/small", MIDDLE),
}


# A running gateway puts an edit by hand in force at once.
DAMAGED = [(damage, with_gateway) for damage in REPLACED for with_gateway in (True, False)] + [(edited_by_hand, False)]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
@pytest.mark.parametrize(
    ("damage", "with_gateway"),
    DAMAGED,
    ids=[f"{damage.__name__}-{'gateway' if on else 'alone'}" for damage, on in DAMAGED],
)
def test_edit_of_a_file_that_is_not_in_force_is_refused(request, damage, command, with_gateway):
    """Nothing is written, whatever is on disk; exit code 1 with the reason, and no waiting for a pipe."""
    operator = request.getfixturevalue("operator" if with_gateway else "alone")
    damage(operator.models)
    status = operator.models.stat() if operator.models.exists() else None

    result = operator("alias", *command)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert str(operator.models) in result.stderr
    now = operator.models.stat() if operator.models.exists() else None
    assert (status is None) == (now is None)
    assert status is None or (status.st_ino, status.st_size) == (now.st_ino, now.st_size)


def test_from_disk_edits_the_file_and_prints_everything_that_changes(alone):
    """What another operator has written into the file comes into force too, so it is in the output."""
    edited_by_hand(alone.models)
    refused = alone("alias", "set", "helexa/small", MIDDLE)
    assert "is not the file in force" in refused.stderr
    assert "--from-disk" in refused.stderr

    output = alone.done("alias", "set", "helexa/small", MIDDLE, "--from-disk", code=2)

    assert f"~alias helexa/small: {SMALL} -> {MIDDLE}" in output
    assert f"+alias by/hand -> {SMALL}" in output


def test_from_disk_of_an_emptied_file_says_what_is_lost(alone):
    """Every model and alias."""
    emptied(alone.models)

    output = alone.done("alias", "set", "extra", SMALL, "--from-disk", "--force", code=2)

    assert f"-alias helexa/large -> {LARGE}" in output
    assert f"-model {LARGE}" in output


def test_edit_follows_another_edit_that_no_gateway_has_read_yet(alone):
    """A file that cortex itself has put in place counts as in force."""
    alone.done("alias", "set", "helexa/small", MIDDLE, code=2)
    alone.done("alias", "set", "helexa/large", MIDDLE, code=2)

    assert "nothing to do" in alone.done("plan", "--offline")
    emptied(alone.models)
    alone.done("alias", "rollback", code=2)
    assert alone.models.read_text().count(f'helexa/small" = "{MIDDLE}"') == 1


def test_edit_waits_for_a_gateway_that_is_about_to_read_the_file(operator):
    """An editor has just saved it: no refusal."""
    edited_by_hand(operator.models)

    assert "+alias" not in operator.done("alias", "set", "helexa/small", MIDDLE)


# Rollback.


@pytest.mark.parametrize("with_gateway", [True, False], ids=["gateway", "alone"])
@pytest.mark.parametrize("damage", REPLACED, ids=lambda damage: damage.__name__)
def test_rollback_restores_whatever_has_replaced_the_file(request, damage, with_gateway):
    """The file in force, to the byte. The output shows the difference; what was there is not lost."""
    operator = request.getfixturevalue("operator" if with_gateway else "alone")
    before = operator.models.read_bytes()
    damage(operator.models)
    replaced = operator.models.read_bytes() if damage in {emptied, blank, broken, not_utf8} else None

    output = operator.done("alias", "rollback", code=0 if with_gateway else 2)

    assert operator.models.read_bytes() == before
    assert "valid again" in output
    if replaced is not None:
        assert operator.records.history.get(digest_of(replaced)) == replaced
        assert "  +" in output or "  -" in output
    elif damage is not deleted:
        (aside,) = operator.models.parent.glob("models.toml.replaced-*")
        assert f"what was in the place of {operator.models} is {aside} now" in output
        remove(aside)


@pytest.mark.parametrize("damage", [emptied, deleted, broken], ids=lambda damage: damage.__name__)
def test_rollback_of_one_alias_restores_the_file_too(alone, damage):
    """The other aliases are those in force."""
    before = alone.models.read_bytes()
    alone.done("alias", "set", "helexa/small", MIDDLE, code=2)
    alone.done("alias", "set", "helexa/large", MIDDLE, code=2)
    damage(alone.models)

    alone.done("alias", "rollback", "helexa/small", code=2)

    assert alone.models.read_bytes() == set_alias(before, "helexa/large", {MIDDLE: 1})


def test_rollback_keeps_a_symlink(alone):
    """A deleted file behind it is created again."""
    before = alone.models.read_bytes()
    real = alone.models.with_name("real.toml")
    alone.models.rename(real)
    alone.models.symlink_to(real)
    real.unlink()

    alone.done("alias", "rollback", code=2)

    assert (alone.models.is_symlink(), real.read_bytes()) == (True, before)


def test_rollback_at_the_first_version_says_so(alone):
    """There is an audit log, and nothing before its first line."""
    lines = alone.records.audit_log.path.read_bytes().splitlines(keepends=True)
    alone.records.audit_log.path.write_bytes(lines[0])
    for announcement in alone.records.history.folder.glob("*.json"):
        announcement.unlink()

    result = alone("alias", "rollback")

    assert result.exit_code == 1
    assert "this is the first version of the file" in result.stderr


def test_rollback_takes_four_characters_of_a_hash(operator):
    """Fewer are refused."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)

    assert operator("alias", "rollback", "--to", digest_of(before)[:3]).exit_code == 1
    operator.done("alias", "rollback", "--to", digest_of(before)[:4])

    assert operator.models.read_bytes() == before


# Swaps that have failed.


def test_set_of_the_same_target_tries_a_failed_swap_again(operator):
    """3 until the alias has moved, also if the file says so already; `retry` does the same."""
    before = operator.models.read_bytes()
    operator.edit(before.replace(b"vram_mb = 12288", b"min_devices = 9"))  # more than any neuron has
    assert "could not be warmed" in operator.done("alias", "set", "helexa/small", COLD, "--wait", code=3)

    for again in (("set", "helexa/small", COLD), ("retry", "helexa/small")):
        output = operator.done("alias", *again, "--wait", code=3)
        assert "helexa/small: trying again" in output
        assert "could not be warmed" in output
    assert f"helexa/small stays on {SMALL}" in operator.done("plan", code=1)

    operator.edit(operator.models.read_bytes().replace(b"min_devices = 9", b"vram_mb = 12288"))
    assert "nothing was written" in operator.done("alias", "set", "helexa/small", COLD, "--wait")
    assert operator.health().get("swaps") is None


def test_retry_of_an_alias_without_a_failed_swap_is_refused(operator):
    """Exit code 1."""
    assert "has no failed swap" in operator.done("alias", "retry", "helexa/small", code=1)


# Several operators.


def test_parallel_edits_of_different_aliases_are_all_kept_and_exit_with_0(operator):
    """Also those whose file another edit has replaced before the gateway read it."""
    targets = {f"parallel/{number}": (SMALL, MIDDLE)[number % 2] for number in range(6)}
    processes = [
        running_cortex("alias", "set", name, target, "-c", operator.config) for name, target in targets.items()
    ]
    running = [process.__enter__() for process in processes]
    try:
        outcomes = [process.end() for process in running]
    finally:
        for process in processes:
            process.__exit__(None, None, None)

    assert [code for code, _, _ in outcomes] == [0] * 6, outcomes
    listed = {
        each["name"]: each["targets"][0]["model"]
        for each in json.loads(operator.done("alias", "list", "--json"))["aliases"]
    }
    assert listed.items() >= targets.items()


# Rollouts.


@pytest.mark.parametrize(
    ("options", "minimum"),
    [
        ((), 20),
        (("--guard", "none"), 0),
        (("--guard", "none", "--min-requests", "5"), 5),
        (("--min-requests", "7"), 7),
        (("--guard", "errors", "--min-requests", "0"), 0),
    ],
)
def test_min_requests_that_are_given_are_kept(alone, options, minimum):
    """Without guards too."""
    alone.done("alias", "rollout", "helexa/small", MIDDLE, *options, code=2)

    assert alone.records.rollouts_path.exists()
    assert json.loads(alone("alias", "rollout", "helexa/small", "--status", "--json").stdout)["minimum"] == minimum


@pytest.mark.parametrize("how", ["--wait", "--watch"])
def test_rollout_is_followed_to_its_end(operator, how):
    """A line for each step; 0 once the target gets all requests."""
    options = ("--steps", "50,100", "--every", "0s", "--guard", "none", how)

    output = operator.done("alias", "rollout", "helexa/small", MIDDLE, *options)

    assert output.splitlines()[-1] == f"helexa/small: done: {MIDDLE} gets all requests"


def test_aborted_rollout_ends_the_following_with_3(operator):
    """It did not end as planned."""
    operator.done("alias", "rollout", "helexa/small", MIDDLE, "--every", "1h")
    operator.done("alias", "rollout", "helexa/small", "--abort")

    assert "aborted" in operator.done("alias", "rollout", "helexa/small", "--wait", code=3)
