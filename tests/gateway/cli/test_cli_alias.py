"""`cortex alias`, `plan` and `audit`, with a real gateway and without one."""

import json
import shutil

import httpx
import pytest
from fakes.operator import Operator, key_in, wait_until
from fakes.patience import SAFETY_NET_S
from fakes.process import cortex, running_cortex

from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.toml_edit import set_alias
from gateway.cli.api_client import GatewayAddress
from gateway.cli.commands.aliases import alias_edit, follow_edit
from gateway.cli.source.local_file import os_user
from gateway.config.load import load

SMALL, MIDDLE, LARGE, COLD = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "Qwen/Qwen3-14B"


@pytest.fixture(scope="module")
def demo_operator(tmp_path_factory):
    """A demo gateway, which all tests of this file share."""
    folder = tmp_path_factory.mktemp("demo")
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 200) as process:
        yield Operator(folder, key_in(process.read_until("Ctrl-C ends it")))
        process.interrupt()
        process.end()


@pytest.fixture
def operator(demo_operator):
    """That gateway, with the models.toml that the demo wrote before and after the test."""
    original = demo_operator.models.read_bytes()
    yield demo_operator
    if demo_operator.models.read_bytes() != original:
        demo_operator.edit(original)
        demo_operator.done("alias", "set", "helexa/large", LARGE)  # changes nothing, so it waits for nothing
    # The next test must not see a swap or an audit line of this one.
    wait_until(lambda: in_force(demo_operator) == digest_of(original) and not demo_operator.health().get("swaps"))
    wait_until(lambda: demo_operator.lines()[-1]["file"] == digest_of(original))


def in_force(operator):
    return operator.in_force()


@pytest.fixture
def alone(tmp_path, demo_operator):
    """The same file, and an address where no gateway answers."""
    shutil.copy(demo_operator.models, tmp_path / "models.toml")
    config = demo_operator.config.read_text()
    for key in ("listen", "metrics_listen"):
        config = "\n".join(
            f'{key} = "127.0.0.1:{9 if key == "listen" else 10}"' if line.startswith(f"{key} =") else line
            for line in config.splitlines()
        )
    (tmp_path / "cortex.toml").write_text(config)
    return Operator(tmp_path, demo_operator.key)


# Set and rollback.


def test_set_and_rollback_leave_the_file_byte_identical(operator):
    """Comments included; each is in force when the command says so."""
    before = operator.models.read_bytes()

    output = operator.done("alias", "set", "helexa/small", MIDDLE, "--wait")
    assert f"~alias helexa/small: {SMALL} -> {MIDDLE}" in output
    assert "in force: generation " in output
    assert in_force(operator) == digest_of(operator.models.read_bytes())
    operator.done("alias", "rollback", "--wait")

    assert operator.models.read_bytes() == before
    assert in_force(operator) == digest_of(before)


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


# Refusals: nothing is written.


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("set", "helexa/small", "helexa/large"), "names an alias, not a model"),
        (("set", "helexa/small", "helexa/small"), "names an alias, not a model"),
        (("set", "helexa/small", ""), "aliases.helexa/small"),
        (("set", "new/one", SMALL, "--weight", "10"), "there is no other target to give the remaining 90 % to"),
        (("remove", "nobody"), "has no alias 'nobody'"),
        (("show", "nobody"), "has no alias 'nobody'"),
        (("rollback", "--to", "999999"), "there is no version 999999"),
        (("rollout", "nobody", SMALL), "has no alias 'nobody'"),
        (("rollout", "helexa/small", SMALL), f"helexa/small points at {SMALL} already"),
        (("rollout", "helexa/small", "helexa/large"), "names an alias, not a model"),
        (("rollout", "helexa/small", "--abort"), "helexa/small has no running rollout"),
        (("rollout", "helexa/large", "--status"), "helexa/large has never been rolled out"),
    ],
)
def test_refusal_writes_nothing_and_says_why(operator, arguments, reason):
    """One line on stderr, exit code 1, no traceback."""
    before = operator.models.read_bytes()

    result = operator("alias", *arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert reason.replace("aliases.helexa/small", "helexa/small") in result.stderr
    assert operator.models.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--steps", "50,5"), "steps must rise"),
        (("--steps", "5,200"), "steps must rise"),
        (("--steps", "a"), "is not a list of percentages"),
        (("--every", "soon"), "is not a duration"),
        (("--guard", "luck"), "there is no guard 'luck'"),
        (("--guard", "errors=x"), "is not a number"),
        (("--guard", "errors=-1"), "a tolerance is"),
        (("--guard", "errors=nan"), "a tolerance is"),
        (("--guard", "ttft=inf"), "a tolerance is"),
        (("--steps", "nan"), "steps must rise"),
        (("--every", "9" * 400 + "d"), "the duration is too long"),
        (("--status",), "give exactly one of TARGET, --status, --abort and --acknowledge"),
    ],
)
def test_invalid_rollout_option_is_a_usage_error(operator, arguments, reason):
    """Exit code 1, as for every refusal; the error shows what is valid."""
    result = operator("alias", "rollout", "helexa/small", MIDDLE, *arguments)

    assert result.exit_code == 1
    assert reason in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("alias", "set", "helexa/small", MIDDLE, "--weight", "101"),
        ("alias", "set", "helexa/small", MIDDLE, "--weight", "nan"),
        ("alias", "set", "helexa/small"),
        ("alias", "sett"),
        ("plan", "--online"),
        ("plan", "no/such.toml"),
        ("--verbose",),
    ],
)
def test_wrong_command_line_is_exit_code_1(operator, arguments):
    """Click's 2 is taken: `plan` exits with 2 for changes, `alias` if the file is written but no gateway answers."""
    result = operator(*arguments)

    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: " in result.stderr


def test_invalid_rollout_state_is_a_warning_where_rollouts_are_not_needed(operator):
    """`list` and `set` work; `rollout` is refused."""
    operator.records.rollouts_path.write_text("{}}")
    try:
        result = operator("alias", "list")
        assert (result.exit_code, "helexa/small" in result.stdout) == (0, True)
        assert result.stderr.startswith(f"warning: {operator.records.rollouts_path}: ")
        assert "repair it, or move it away" in result.stderr

        output = operator.done("alias", "set", "helexa/small", MIDDLE)
        assert "warning: " in output
        assert "in force: generation " in output
        refused = operator("alias", "rollout", "helexa/small", SMALL)
        assert (refused.exit_code, "repair it, or move it away" in refused.stderr) == (1, True)
    finally:
        operator.records.rollouts_path.unlink()


@pytest.mark.parametrize(
    ("interrupted", "error"),
    [
        ("refuse_other_file", "interrupted: nothing was written\n"),
        ("report_changes", "interrupted: the change may be written already; the gateway goes on with it\n"),
    ],
)
def test_interrupt_says_whether_anything_was_written(operator, monkeypatch, interrupted, error):
    """Exit code 130."""

    def ctrl_c(*_, **__):
        raise KeyboardInterrupt

    before = operator.models.read_bytes()
    monkeypatch.setattr(alias_edit.AliasEditor, interrupted, ctrl_c)
    result = operator("alias", "set", "helexa/small", MIDDLE, "--wait")

    assert (result.exit_code, result.stderr) == (130, error)
    assert (operator.models.read_bytes() == before) == ("nothing" in error)


def test_history_of_an_alias_that_never_changed_says_so(operator):
    """The output names the alias."""
    assert "names none that changed 'nobody'" in operator.done("alias", "history", "nobody")


def test_faulty_file_is_not_edited(operator):
    """The error lists every fault with its line."""
    operator.edit(operator.models.read_bytes() + b"[aliases]\n")

    result = operator("alias", "set", "helexa/small", MIDDLE)

    assert result.exit_code == 1
    assert f"{operator.models}:" in result.stderr or "not TOML" in result.stderr


def test_gateway_that_reads_another_file_is_not_waited_for(operator, tmp_path):
    """With a wrong -c nothing is written."""
    shutil.copy(operator.models, tmp_path / "models.toml")
    config = tmp_path / "cortex.toml"
    shutil.copy(operator.config, config)
    before = (tmp_path / "models.toml").read_bytes()

    result = operator("alias", "set", "helexa/small", MIDDLE, "-c", config)

    assert result.exit_code == 1
    assert f"reads {operator.models}, not {tmp_path / 'models.toml'}" in result.stderr
    assert (tmp_path / "models.toml").read_bytes() == before


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
    wait_until(lambda: in_force(operator) == digest_of(before))

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


# Plan.


def test_plan_of_the_file_in_force_is_nothing_to_do(operator):
    """Exit code 0."""
    assert "nothing to do" in operator.done("plan")


def test_plan_shows_what_a_file_would_change(operator, tmp_path):
    """Exit code 2; the catalogue in force does not change."""
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(operator.models.read_bytes(), "helexa/small", {LARGE: 1}))
    before = in_force(operator)

    output = operator.done("plan", wanted, code=2)

    assert f"helexa/small  {SMALL} -> {LARGE}" in output
    assert f"{LARGE} is loaded on beast" in output
    assert "VRAM, MB" in output
    assert in_force(operator) == before
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
    wanted = tmp_path / "wanted.toml"
    wanted.write_bytes(set_alias(operator.models.read_bytes(), "helexa/small", {LARGE: 1}))

    output = operator.done("plan", wanted, "--offline", code=2)

    assert f"~alias helexa/small: {SMALL} -> {LARGE}" in output
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
    wait_until(lambda: in_force(operator) == digest_of(operator.models.read_bytes()))
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
