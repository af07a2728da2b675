"""`cortex alias` and `audit`, with a real gateway and without one."""

import json
import shutil

from fakes.operator import COLD, LARGE, MIDDLE, SMALL, wait_until
from fakes.process import cortex, running_cortex

from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.toml_edit import set_alias
from gateway.cli.commands.aliases import alias_edit, follow_edit
from gateway.cli.source.local_file import os_user

# Set and rollback.


def test_set_and_rollback_leave_the_file_byte_identical(operator):
    """Comments included; each is in force when the command says so."""
    before = operator.models.read_bytes()

    output = operator.done("alias", "set", "helexa/small", MIDDLE, "--wait")
    assert f"~alias helexa/small: {SMALL} -> {MIDDLE}" in output
    assert "in force: generation " in output
    assert operator.in_force() == digest_of(operator.models.read_bytes())
    operator.done("alias", "rollback", "--wait")

    assert operator.models.read_bytes() == before
    assert operator.in_force() == digest_of(before)


def test_rollback_without_waiting_in_between_is_byte_identical(operator):
    """However quickly one follows the other; a second rollback undoes the first."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)
    changed = operator.models.read_bytes()

    operator.done("alias", "rollback")
    assert operator.models.read_bytes() == before
    operator.done("alias", "rollback")
    assert operator.models.read_bytes() == changed
    operator.done("alias", "rollback")
    assert operator.models.read_bytes() == before


def test_wait_returns_when_a_cold_target_has_been_loaded(operator):
    """Afterwards the new target is in force."""
    operator.done("alias", "set", "helexa/small", COLD, "--wait")

    state = next(
        each["state"]
        for each in json.loads(operator.done("alias", "list", "--json"))["aliases"]
        if each["name"] == "helexa/small"
    )
    assert state == "in force"


def test_swap_to_a_cold_target_is_reported_step_by_step(operator, monkeypatch):
    """Each phase once, and its completion. The test provides the gateway's answers."""
    swap = {"alias": "tier", "in_force": "A", "wanted": "B", "state": "warming", "phase": "load", "model": "B"}
    swap |= {"reason": None, "elapsed_s": 1.0, "allowed_s": 9.0}
    steps = [swap, swap | {"elapsed_s": 2.0}, swap | {"phase": "probe"}, None]
    answers = iter([{"catalogue": {"generation": 7}, "swaps": [step] if step else []} for step in steps])
    monkeypatch.setattr(follow_edit.api_client, "get_health", lambda *_: next(answers))
    monkeypatch.setattr(follow_edit, "SWAP_POLL_S", 0)
    reported = []
    follower = follow_edit.EditFollower(operator.editor(reported.append))

    assert follower.follow_swaps(None, next(answers), {"tier"}, wait=True) == alias_edit.DONE
    assert reported == [
        "tier stays on A until B is loaded",
        "tier stays on A until B is probed",
        "tier has moved: generation 7",
    ]


def test_failed_swap_is_reported_with_its_reason(operator):
    """The file is written, but the alias does not move: exit code 3."""
    operator.edit(operator.models.read_bytes() + b'\n[[models]]\nid = "huge"\nharness = "llamacpp"\nmin_devices = 9\n')

    output = operator.done("alias", "set", "helexa/small", "huge", "--wait", code=3)

    assert f"helexa/small stays on {SMALL}: huge could not be warmed: " in output
    assert "could not be warmed" in operator.done("alias", "show", "helexa/small")


def test_set_without_the_token_waits_by_polling_health(operator):
    """An operator who may write the file needs no token."""
    config = operator.config.read_text()
    without = operator.config.with_name("without.toml")
    without.write_text("\n".join(line for line in config.splitlines() if not line.startswith("token")))

    output = operator.done("alias", "set", "helexa/small", MIDDLE, "-c", without)

    assert "in force: generation " in output
    assert "warning" not in output


def test_wrong_token_is_a_warning(operator):
    """The gateway notices the change by itself."""
    output = operator.done("alias", "set", "helexa/small", MIDDLE, CORTEX_KEY="wrong")

    assert "warning: " in output
    assert "in force: generation " in output


def test_set_to_the_present_target_writes_nothing(operator):
    """And is not an error."""
    before = operator.models.stat().st_mtime_ns

    assert "nothing was written" in operator.done("alias", "set", "helexa/small", SMALL)
    assert operator.models.stat().st_mtime_ns == before


def test_weight_shares_the_alias(operator):
    """The old target keeps the rest. Setting it to all restores the line exactly."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE, "--weight", 10)

    targets = f'[{{ model = "{SMALL}", weight = 90 }}, {{ model = "{MIDDLE}", weight = 10 }}]'
    assert f'"helexa/small" = {{ targets = {targets} }}' in operator.models.read_text()
    operator.done("alias", "set", "helexa/small", SMALL)
    assert operator.models.read_bytes() == before


def test_cold_goes_into_the_file(operator):
    """So that the setting also holds for later changes of the alias."""
    operator.done("alias", "set", "helexa/small", LARGE, "--cold")

    assert f'"helexa/small" = {{ target = "{LARGE}", swap = "cold" }}' in operator.models.read_text()


def test_unknown_target_is_refused_unless_forced(operator):
    """The error names the nearest known model; --force makes it a warning."""
    text = "Qwen/Qwen3-88B is unknown: models.toml has no [[models]] table for it, and no neuron has it"
    for arguments in (("set", "new/one"), ("rollout", "helexa/small")):
        refused = operator("alias", *arguments, "Qwen/Qwen3-88B")
        assert (refused.exit_code, refused.stdout) == (1, "")
        assert f"error: {text}; did you mean '{MIDDLE}'" in refused.stderr
        assert "--force" in refused.stderr

    assert f"warning: {text}" in operator.done("alias", "set", "new/one", "Qwen/Qwen3-88B", "--force")


def test_target_that_only_a_neuron_knows_is_no_warning(operator):
    """It needs no [[models]] table."""
    output = operator.done("alias", "set", "new/one", "Qwen/Qwen3-Embedding-0.6B")

    assert "warning" not in output
    assert "+alias new/one -> Qwen/Qwen3-Embedding-0.6B" in output


def test_remove_takes_the_alias_out(operator):
    """New requests for it get 404."""
    output = operator.done("alias", "remove", "helexa/balanced")

    assert f"-alias helexa/balanced -> {MIDDLE}" in output
    assert "helexa/balanced" not in operator.done("alias", "list")


# Seeing.


def test_list_shows_targets_and_states(operator):
    """From the file, and whether the gateway has it in force."""
    output = operator.done("alias", "list")
    assert [line.split() for line in output.splitlines() if line.startswith("helexa/small")] == [
        ["helexa/small", SMALL, "in", "force"]
    ]

    result = json.loads(operator.done("alias", "list", "--json"))
    assert result["aliases"][-1]["targets"] == [{"model": SMALL, "weight": 1.0}]


def test_rollback_restores_a_file_that_was_edited_badly(operator):
    """`list` refuses the faulty file; `rollback` replaces it."""
    before = operator.models.read_bytes()
    operator.edit(before.replace(b'"helexa/small" = ', b'"helexa/small" = 7 # '))
    wait_until(lambda: operator.records.audit_log.newest_first().__next__().fields["event"] == "rejected")

    assert operator("alias", "list").exit_code == 1
    operator.done("alias", "rollback")

    assert operator.models.read_bytes() == before
    assert "in force" in operator.done("alias", "list")


def test_rollback_takes_the_versions_that_history_lists(operator):
    """By number and by the beginning of a hash. The history of an alias lists only the versions that changed it."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)
    operator.done("alias", "set", "helexa/large", MIDDLE)
    wait_until(lambda: "helexa/large" in operator.done("alias", "history", "--limit", 1))

    newest, older, *_ = json.loads(operator.done("alias", "history", "--json"))["versions"]
    assert (newest["aliases"], older["aliases"]) == (["helexa/large"], ["helexa/small"])
    assert newest["who"] == os_user()
    of_small = json.loads(operator.done("alias", "history", "helexa/small", "--json"))["versions"]
    assert of_small[0]["number"] == older["number"]

    operator.done("alias", "rollback", "--to", older["number"])
    assert operator.models.read_bytes() == set_alias(before, "helexa/small", {MIDDLE: 1})
    operator.done("alias", "rollback", "--to", digest_of(before)[:8])
    assert operator.models.read_bytes() == before


def test_rollback_of_one_alias_leaves_the_others(operator):
    """It restores the alias from the last version in which it was different."""
    before = operator.models.read_bytes()
    operator.done("alias", "set", "helexa/small", MIDDLE)
    operator.done("alias", "set", "helexa/large", MIDDLE)

    operator.done("alias", "rollback", "helexa/small")

    assert operator.models.read_bytes() == set_alias(before, "helexa/large", {MIDDLE: 1})


def test_show_prints_settings_locations_and_versions_of_an_alias(operator):
    """As text and as JSON."""
    operator.done("alias", "set", "helexa/small", MIDDLE, "--weight", 25, "--cold")

    output = operator.done("alias", "show", "helexa/small")

    assert f"[{SMALL} 75, {MIDDLE} 25]" in output
    assert f"{SMALL}: benjy loaded, quadbrat loaded" in output
    assert "cold" in output
    result = json.loads(operator.done("alias", "show", "helexa/small", "--json"))
    assert result["loaded_on"][MIDDLE] == ["beast loaded"]


# Without a gateway.


def test_without_a_gateway_the_file_is_changed_all_the_same(alone):
    """Exit code 2. `rollback` works without a gateway too."""
    before = alone.models.read_bytes()

    output = alone.done("alias", "set", "helexa/small", MIDDLE, code=2)
    assert "cannot reach" in output
    assert MIDDLE.encode() in alone.models.read_bytes()
    assert "no gateway answers" in alone.done("alias", "list")
    alone.done("alias", "rollback", code=2)

    assert alone.models.read_bytes() == before


def test_rollback_without_an_audit_log_is_refused(alone):
    """No gateway has ever written one."""
    result = alone("alias", "rollback")

    assert result.exit_code == 1
    assert "no earlier file is known" in result.stderr


def test_rollout_without_a_gateway_waits_for_one(alone):
    """The rollout is saved."""
    output = alone.done("alias", "rollout", "helexa/small", MIDDLE, code=2)

    assert "begins when one does" in output
    assert "about to begin" in alone.done("alias", "rollout", "helexa/small", "--status")
    assert "rolled out to Qwen/Qwen3-8B already" in alone("alias", "rollout", "helexa/small", LARGE).stderr
    alone.done("alias", "rollout", "helexa/small", "--abort")


def test_history_that_cannot_be_kept_is_a_warning(alone):
    """The change is made all the same."""
    alone.models.with_name("models.history").write_text("in the way")

    output = alone.done("alias", "set", "helexa/small", MIDDLE, code=2)

    assert "warning: `cortex alias rollback` cannot undo this change: " in output
    assert MIDDLE.encode() in alone.models.read_bytes()


# As processes.


def test_race_of_set_and_rollback_ends_in_one_of_the_two(operator):
    """Two processes at the same moment: the file is one of the possible versions, never a mixture."""
    one, two = operator.models.read_bytes(), None
    for _ in range(3):
        operator.done("alias", "set", "helexa/small", MIDDLE)
        two = operator.models.read_bytes()
        with (
            running_cortex("alias", "rollback", "-c", operator.config) as back,
            running_cortex("alias", "set", "helexa/small", LARGE, "-c", operator.config) as forth,
        ):
            assert {back.end()[0], forth.end()[0]} <= {0, 1, 3}
        three = set_alias(one, "helexa/small", {LARGE: 1})
        assert operator.models.read_bytes() in {one, two, three}
        operator.edit(one)


def test_process_prints_to_stdout_only(operator):
    """With exit code 0, and nothing on stderr."""
    done = cortex("alias", "set", "helexa/small", MIDDLE, "-c", operator.config)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == f"{operator.models}: ~alias helexa/small: {SMALL} -> {MIDDLE}"


# The audit log.


def test_audit_log_names_actor_and_command(operator):
    """For a command the OS user and the command line; for an edit of the file `file`."""
    before = operator.models.read_bytes()
    already = len(operator.lines())
    operator.done("alias", "set", "helexa/balanced", SMALL, "--wait")
    operator.edit(before)
    wait_until(lambda: operator.in_force() == digest_of(before))

    def applied():
        return [line for line in operator.lines()[already:] if line["event"] == "applied"]

    wait_until(lambda: len(applied()) == 2)
    assert [(line["who"], line.get("command")) for line in applied()] == [
        (os_user(), f"cortex alias set helexa/balanced {SMALL}"),
        ("file", None),
    ]
    assert applied()[0]["plan"]["aliases"][0]["name"] == "helexa/balanced"


def test_audit_verify_and_show(operator):
    """The log is intact, and the newest lines are shown."""
    operator.done("alias", "set", "helexa/balanced", SMALL)
    wait_until(lambda: "alias set helexa/balanced" in operator.done("audit", "show"))

    assert "are intact" in operator.done("audit", "verify")
    lines = json.loads(operator.done("audit", "show", "--limit", 3, "--json"))["lines"]
    assert len(lines) == 3


def test_audit_verify_names_the_first_broken_line(operator, tmp_path):
    """In a copy that was changed."""
    operator.done("alias", "set", "helexa/balanced", SMALL)
    wait_until(lambda: len(operator.lines()) >= 2)
    for path in (operator.config, operator.models, operator.records.audit_log.path):
        shutil.copy(path, tmp_path / path.name)
    changed_log = tmp_path / operator.records.audit_log.path.name
    changed_log.write_bytes(changed_log.read_bytes().replace(b'"who":"cortex"', b'"who":"nobody"', 1))

    result = operator("audit", "verify", "-c", tmp_path / "cortex.toml")

    assert result.exit_code == 1
    assert result.stderr.startswith(f"broken: {changed_log}:1: ")
