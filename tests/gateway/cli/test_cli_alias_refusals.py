"""`cortex alias` refuses: nothing is written, and the message says why."""

import shutil

import pytest
from fakes.operator import MIDDLE, SMALL

from gateway.cli.commands.aliases import alias_edit

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
