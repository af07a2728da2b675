"""gateway.aliases.files.rollout_state: of a step, a rollback, an abort and an edit at once, exactly one happens."""

from pathlib import Path
from threading import Barrier, Thread

import msgspec
import pytest

from catalogue.load import parse
from gateway.aliases.files import locked_edit, rollout_state, toml_edit
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.rollout_state import InvalidRolloutState, Rollout, RolloutAlreadyRunning, has_targets
from gateway.config.settings import Settings
from gateway.files.atomic_write import CannotSave

FILE = b"""\
# The tiers.
[aliases]
"tier" = "A"   # for now
"other" = "C"
"""


@pytest.fixture
def files(tmp_path):
    (tmp_path / "models.toml").write_bytes(FILE)
    return CatalogueFiles.from_settings(Settings(models_config=tmp_path / "models.toml"))


def a_rollout(files, **how):
    """A stored rollout of the tier from A to B; the history has the file before it."""
    rollout = Rollout(
        **{
            "alias": "tier",
            "target": "B",
            "steps": (5, 50, 100),
            "every_s": 60,
            "guards": {"errors": 0.02},
            "minimum": 20,
            "who": "anna",
            "started": 1000.0,
            "before": files.history.keep(files.models_path.read_bytes()),
            "old": {"A": 1.0},
        }
        | how
    )
    rollout_state.begin(files, rollout)
    return rollout


def alias(files, name="tier"):
    return parse(files.models_path.read_bytes(), path="", generation=0, loaded_at=0).aliases[name]


def advanced(files, rollout, times=1):
    """Advance by some steps, each in force at once."""
    for number in range(times):
        rollout = rollout_state.advance(files, rollout, 1000.0)
        rollout = rollout_state.mark_in_force(files, rollout, 1000.0 + number)
    return rollout


def test_stored_rollout_is_read_back_equal(files):
    """Every field is stored."""
    rollout = a_rollout(files)

    assert rollout_state.read(files) == {"tier": rollout}


def test_steps_change_weights_and_nothing_else(files):
    """The last step is a plain string again; every other byte stays."""
    rollout = advanced(files, a_rollout(files))
    assert has_targets(alias(files), {"A": 95, "B": 5})
    assert b"# for now" in files.models_path.read_bytes()
    rollout = advanced(files, rollout)
    assert has_targets(alias(files), {"A": 50, "B": 50})
    rollout = advanced(files, rollout)

    assert rollout.is_last
    assert files.models_path.read_bytes() == FILE.replace(b'"tier" = "A"', b'"tier" = "B"')


def test_several_old_targets_keep_their_proportions(files):
    """They share what the new target leaves."""
    files.models_path.write_bytes(toml_edit.set_alias(FILE, "tier", {"A": 2, "C": 1}))
    rollout = advanced(files, a_rollout(files, old={"A": 2.0, "C": 1.0}))

    assert has_targets(alias(files), {"A": 95 * 2 / 3, "C": 95 / 3, "B": 5})
    assert rollout_state.supersede_if_changed(files, rollout, 1001.0) == rollout


@pytest.mark.parametrize("state", ["rolled_back", "aborted"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_rollback_restores_the_same_bytes(files, state, steps):
    """From every step; the state has the reason."""
    rollout = advanced(files, a_rollout(files), steps)

    ended = rollout_state.end(files, rollout, state, "errors: too many", 1500.0)

    assert files.models_path.read_bytes() == FILE
    assert (ended.state, ended.reason, ended.ended, ended.ending) == (state, "errors: too many", 1500.0, None)
    assert rollout_state.read(files)["tier"] == ended


def test_rollback_keeps_edits_of_other_aliases(files):
    """Only the alias of the rollout is restored."""
    rollout = advanced(files, a_rollout(files))
    data = files.models_path.read_bytes()
    files.models_path.write_bytes(toml_edit.set_alias(data, "other", {"D": 1}) + b"# a note\n")

    rollout_state.end(files, rollout, "rolled_back", "x", 1500.0)

    assert files.models_path.read_bytes() == toml_edit.set_alias(FILE, "other", {"D": 1}) + b"# a note\n"


def test_rollback_without_the_file_in_the_history_restores_the_targets(files):
    """Only the layout is lost."""
    rollout = advanced(files, a_rollout(files, before="0" * 64))

    rollout_state.end(files, rollout, "rolled_back", "x", 1500.0)

    assert has_targets(alias(files), {"A": 1})


def test_done_leaves_the_alias_where_it_is(files):
    """The state "done" is final."""
    rollout = advanced(files, a_rollout(files), 3)

    ended = rollout_state.end(files, rollout, "done", "B has every request", 1500.0)

    assert ended.state == "done"
    assert alias(files).target == "B"


def test_edit_of_the_alias_supersedes_the_rollout(files):
    """The edited file stays as it is."""
    rollout = advanced(files, a_rollout(files))
    files.models_path.write_bytes(toml_edit.set_alias(FILE, "tier", {"C": 1}))

    for attempt in (
        lambda: rollout_state.advance(files, rollout, 1500.0),
        lambda: rollout_state.end(files, rollout, "rolled_back", "x", 1500.0),
    ):
        assert attempt().state == "superseded"
    assert alias(files).target == "C"


def test_removal_of_the_alias_supersedes_the_rollout(files):
    """There is no alias left to move."""
    rollout = advanced(files, a_rollout(files))
    files.models_path.write_bytes(toml_edit.remove_alias(FILE, "tier"))

    ended = rollout_state.supersede_if_changed(files, rollout, 1500.0)

    assert (ended.state, ended.reason) == ("superseded", "the alias was removed")


def test_second_gateway_does_not_repeat_a_step(files):
    """Two gateways that share a file advance by one step, not by two."""
    first = advanced(files, a_rollout(files))

    one = rollout_state.advance(files, first, 1500.0)
    two = rollout_state.advance(files, first, 1500.0)

    assert one == two == rollout_state.read(files)["tier"]
    assert has_targets(alias(files), {"A": 50, "B": 50})


def test_second_rollout_of_an_alias_is_refused_until_the_first_ends(files):
    """One alias has at most one running rollout."""
    rollout = a_rollout(files)
    with pytest.raises(RolloutAlreadyRunning, match="rolled out to B already"):
        a_rollout(files, target="C")

    rollout_state.end(files, rollout, "aborted", "x", 1500.0)
    a_rollout(files, target="C")

    assert rollout_state.read(files)["tier"].target == "C"


# Crashes.


class Crash(BaseException):
    """The process ended without cleanup."""


@pytest.fixture
def crash_before_replace(monkeypatch):
    """Returns a function; after its call the process ends before `models.toml` is replaced."""

    def crash(*_, **__):
        raise Crash

    return lambda: monkeypatch.setattr(locked_edit, "replace", crash)


def test_step_is_repeated_after_a_crash_before_the_file_was_written(files, crash_before_replace, monkeypatch):
    """The state has the step, the file does not."""
    rollout = advanced(files, a_rollout(files))
    crash_before_replace()
    with pytest.raises(Crash):
        rollout_state.advance(files, rollout, 1500.0)
    monkeypatch.undo()
    left = rollout_state.read(files)["tier"]
    assert (left.step, left.since) == (1, None)

    again = rollout_state.advance(files, left, 1500.0)

    assert again == left
    assert has_targets(alias(files), {"A": 50, "B": 50})


def test_rollback_is_repeated_after_a_crash_before_the_file_was_written(files, crash_before_replace, monkeypatch):
    """The state has the reason, too."""
    rollout = advanced(files, a_rollout(files), 2)
    crash_before_replace()
    with pytest.raises(Crash):
        rollout_state.end(files, rollout, "rolled_back", "errors: too many", 1500.0)
    monkeypatch.undo()
    left = rollout_state.read(files)["tier"]
    assert (left.state, left.ending, left.reason) == ("running", "rolled_back", "errors: too many")

    ended = rollout_state.end(files, left, left.ending, left.reason, 1600.0)

    assert (ended.state, ended.reason) == ("rolled_back", "errors: too many")
    assert files.models_path.read_bytes() == FILE


def test_rollback_is_finished_after_a_crash_after_the_file_was_written(files, monkeypatch):
    """The file is restored already; only the final state is missing."""
    rollout = advanced(files, a_rollout(files), 2)
    store = rollout_state._store

    def crash_at_the_end(files, rollout):
        if rollout.state != "running":
            raise Crash
        return store(files, rollout)

    monkeypatch.setattr(rollout_state, "_store", crash_at_the_end)
    with pytest.raises(Crash):
        rollout_state.end(files, rollout, "rolled_back", "x", 1500.0)
    monkeypatch.undo()
    left = rollout_state.read(files)["tier"]

    assert rollout_state.end(files, left, left.ending, left.reason, 1600.0).state == "rolled_back"
    assert files.models_path.read_bytes() == FILE


# Races.


def test_concurrent_rollback_edit_and_step_leave_the_file_as_one_of_them(files):
    """Thirty times: the file is valid and has the result of exactly one of the three."""
    results = set()
    for _ in range(30):
        files.models_path.write_bytes(FILE)
        files.rollouts_path.unlink(missing_ok=True)
        rollout = advanced(files, a_rollout(files))
        start = Barrier(3)

        def run_at_once(act, start=start):
            start.wait()
            try:
                act()
            except CannotSave as error:
                assert "changed during the edit" in str(error)  # noqa: PT017 - no error is right, too

        threads = [
            Thread(target=run_at_once, args=(act,))
            for act in (
                lambda: locked_edit.edit_models(
                    files, lambda data: toml_edit.set_alias(data, "tier", {"C": 1}), who="x", command="set"
                ),
                lambda r=rollout: rollout_state.end(files, r, "rolled_back", "x", 1500.0),
                lambda r=rollout: rollout_state.advance(files, r, 1500.0),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = alias(files)
        assert has_targets(found, {"C": 1}) or has_targets(found, {"A": 1}) or has_targets(found, {"A": 50, "B": 50})
        results.add(tuple(target.model for target in found.targets))

    assert results


# The state file.


@pytest.mark.parametrize("data", [b"", b"{", b'{"rollouts": {"tier": {}}}', b'{"version": 2, "rollouts": {}}'])
def test_invalid_state_file_is_an_error(files, data):
    """It names the file."""
    files.rollouts_path.write_bytes(data)

    with pytest.raises(InvalidRolloutState, match=str(files.rollouts_path)):
        rollout_state.read(files)


def test_ended_rollouts_are_bounded(files, monkeypatch):
    """The latest are kept for operators, and running ones always."""
    monkeypatch.setattr(rollout_state, "ENDED_KEPT", 2)
    running = a_rollout(files)
    for number in range(5):
        name = f"t{number}"
        ended = msgspec.structs.replace(running, alias=name, state="done", ended=float(number))
        rollout_state._store(files, ended)

    assert sorted(rollout_state.read(files)) == ["t3", "t4", "tier"]


def test_file_stamp_changes_with_the_file(files):
    """Without a file there is no stamp."""
    assert rollout_state.file_stamp(files) is None
    rollout = a_rollout(files)
    before = rollout_state.file_stamp(files)
    advanced(files, rollout)

    assert before != rollout_state.file_stamp(files)
    assert Path(files.rollouts_path).name == "models.rollouts.json"
    assert digest_of(FILE) == rollout.before


def test_rollout_with_a_value_that_json_cannot_express_is_not_written(files):
    """An unreadable file would stop every other rollout."""
    with pytest.raises(ValueError, match="cannot be written to"):
        a_rollout(files, guards={"errors": float("nan")})

    assert rollout_state.read(files) == {}
