"""rollout_state: a step, a rollback, an abort and an edit that meet end in exactly one of them."""

from pathlib import Path
from threading import Barrier, Thread

import msgspec
import pytest

from catalogue.load import parse
from gateway.aliases.files import locked_edit, rollout_state, toml_edit
from gateway.aliases.files.file_history import digest_of
from gateway.aliases.files.paths import Records
from gateway.aliases.files.rollout_state import AlreadyRunning, BrokenState, Rollout, is_at
from gateway.config.settings import Settings
from gateway.files import atomic

FILE = b"""\
# The tiers.
[aliases]
"tier" = "A"   # for now
"other" = "C"
"""


@pytest.fixture
def records(tmp_path):
    (tmp_path / "models.toml").write_bytes(FILE)
    return Records.of(Settings(models_config=tmp_path / "models.toml"))


def a_rollout(records, **how):
    """Of the tier from A to B, written down; its beginning kept."""
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
            "before": records.history.keep(records.models.read_bytes()),
            "old": {"A": 1.0},
        }
        | how
    )
    rollout_state.begin(records, rollout)
    return rollout


def alias(records, name="tier"):
    return parse(records.models.read_bytes(), path="", generation=0, loaded_at=0).aliases[name]


def stepped(records, rollout, times=1):
    """So many steps on, each in force at once."""
    for number in range(times):
        rollout = rollout_state.advance(records, rollout, 1000.0)
        rollout = rollout_state.in_force(records, rollout, 1000.0 + number)
    return rollout


def test_rollout_survives_its_file(records):
    """What is read is what was written."""
    rollout = a_rollout(records)

    assert rollout_state.read(records) == {"tier": rollout}


def test_steps_change_weights_and_nothing_else(records):
    """Up to the plain string that says the new target alone; every other byte stays."""
    rollout = stepped(records, a_rollout(records))
    assert is_at(alias(records), {"A": 95, "B": 5})
    assert b"# for now" in records.models.read_bytes()
    rollout = stepped(records, rollout)
    assert is_at(alias(records), {"A": 50, "B": 50})
    rollout = stepped(records, rollout)

    assert rollout.is_last
    assert records.models.read_bytes() == FILE.replace(b'"tier" = "A"', b'"tier" = "B"')


def test_several_old_targets_keep_their_proportions(records):
    """They share what the new one leaves."""
    records.models.write_bytes(toml_edit.set_alias(FILE, "tier", {"A": 2, "C": 1}))
    rollout = stepped(records, a_rollout(records, old={"A": 2.0, "C": 1.0}))

    assert is_at(alias(records), {"A": 95 * 2 / 3, "C": 95 / 3, "B": 5})
    assert rollout_state.supersede_if_changed(records, rollout, 1001.0) == rollout


@pytest.mark.parametrize("how", ["rolled_back", "aborted"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_way_back_leads_to_the_same_bytes(records, how, steps):
    """From every step, with the reason."""
    rollout = stepped(records, a_rollout(records), steps)

    over = rollout_state.end(records, rollout, how, "errors: too many", 1500.0)

    assert records.models.read_bytes() == FILE
    assert (over.state, over.reason, over.ended, over.ending) == (how, "errors: too many", 1500.0, None)
    assert rollout_state.read(records)["tier"] == over


def test_way_back_leaves_others_edits_alone(records):
    """Only the alias is put back; what was changed beside it meanwhile stays."""
    rollout = stepped(records, a_rollout(records))
    data = records.models.read_bytes()
    records.models.write_bytes(toml_edit.set_alias(data, "other", {"D": 1}) + b"# a note\n")

    rollout_state.end(records, rollout, "rolled_back", "x", 1500.0)

    assert records.models.read_bytes() == toml_edit.set_alias(FILE, "other", {"D": 1}) + b"# a note\n"


def test_way_back_without_the_kept_file_is_one_in_meaning(records):
    """A history that was cleared costs the layout only."""
    rollout = stepped(records, a_rollout(records, before="0" * 64))

    rollout_state.end(records, rollout, "rolled_back", "x", 1500.0)

    assert is_at(alias(records), {"A": 1})


def test_done_leaves_the_alias_where_it_is(records):
    """And is an end."""
    rollout = stepped(records, a_rollout(records), 3)

    over = rollout_state.end(records, rollout, "done", "B has every request", 1500.0)

    assert over.state == "done"
    assert alias(records).target == "B"


def test_edit_of_the_alias_ends_the_rollout(records):
    """The file is the truth: whoever edits it means it."""
    rollout = stepped(records, a_rollout(records))
    records.models.write_bytes(toml_edit.set_alias(FILE, "tier", {"C": 1}))

    for attempt in (
        lambda: rollout_state.advance(records, rollout, 1500.0),
        lambda: rollout_state.end(records, rollout, "rolled_back", "x", 1500.0),
    ):
        assert attempt().state == "superseded"
    assert alias(records).target == "C"


def test_removal_of_the_alias_ends_the_rollout(records):
    """There is nothing to lead."""
    rollout = stepped(records, a_rollout(records))
    records.models.write_bytes(toml_edit.remove_alias(FILE, "tier"))

    over = rollout_state.supersede_if_changed(records, rollout, 1500.0)

    assert (over.state, over.reason) == ("superseded", "the alias was removed")


def test_whoever_comes_second_does_nothing(records):
    """Two gateways with one file: one step, not two."""
    first = stepped(records, a_rollout(records))

    one = rollout_state.advance(records, first, 1500.0)
    two = rollout_state.advance(records, first, 1500.0)

    assert one == two == rollout_state.read(records)["tier"]
    assert is_at(alias(records), {"A": 50, "B": 50})


def test_second_rollout_of_an_alias_has_to_wait(records):
    """One at a time; after its end there may be another."""
    rollout = a_rollout(records)
    with pytest.raises(AlreadyRunning, match="rolled out to B already"):
        a_rollout(records, target="C")

    rollout_state.end(records, rollout, "aborted", "x", 1500.0)
    a_rollout(records, target="C")

    assert rollout_state.read(records)["tier"].target == "C"


# Crashes.


class Crash(BaseException):
    """The power went."""


@pytest.fixture
def crashing(monkeypatch):
    """From now on, the process ends before `models.toml` is replaced."""

    def crash(*_, **__):
        raise Crash

    return lambda: monkeypatch.setattr(locked_edit, "replace", crash)


def test_crash_before_a_step_is_written_is_made_good(records, crashing, monkeypatch):
    """The state says the step, the file does not yet: the same step again."""
    rollout = stepped(records, a_rollout(records))
    crashing()
    with pytest.raises(Crash):
        rollout_state.advance(records, rollout, 1500.0)
    monkeypatch.undo()
    left = rollout_state.read(records)["tier"]
    assert (left.step, left.since) == (1, None)

    again = rollout_state.advance(records, left, 1500.0)

    assert again == left
    assert is_at(alias(records), {"A": 50, "B": 50})


def test_crash_before_the_way_back_is_written_is_made_good(records, crashing, monkeypatch):
    """The reason is not lost either."""
    rollout = stepped(records, a_rollout(records), 2)
    crashing()
    with pytest.raises(Crash):
        rollout_state.end(records, rollout, "rolled_back", "errors: too many", 1500.0)
    monkeypatch.undo()
    left = rollout_state.read(records)["tier"]
    assert (left.state, left.ending, left.reason) == ("running", "rolled_back", "errors: too many")

    over = rollout_state.end(records, left, left.ending, left.reason, 1600.0)

    assert (over.state, over.reason) == ("rolled_back", "errors: too many")
    assert records.models.read_bytes() == FILE


def test_crash_after_the_way_back_is_written_is_made_good(records, monkeypatch):
    """The file is back already; only its being over was not written down."""
    rollout = stepped(records, a_rollout(records), 2)
    put = rollout_state._put

    def crash_at_the_end(records, rollout):
        if rollout.state != "running":
            raise Crash
        return put(records, rollout)

    monkeypatch.setattr(rollout_state, "_put", crash_at_the_end)
    with pytest.raises(Crash):
        rollout_state.end(records, rollout, "rolled_back", "x", 1500.0)
    monkeypatch.undo()
    left = rollout_state.read(records)["tier"]

    assert rollout_state.end(records, left, left.ending, left.reason, 1600.0).state == "rolled_back"
    assert records.models.read_bytes() == FILE


# Races.


def test_rollback_racing_a_set_and_a_step_ends_in_one_of_them(records):
    """Three at once, many times: the file is always wholly one of the three, and loads."""
    results = set()
    for _ in range(30):
        records.models.write_bytes(FILE)
        records.rollouts.unlink(missing_ok=True)
        rollout = stepped(records, a_rollout(records))
        start = Barrier(3)

        def racing(do, start=start):
            start.wait()
            try:
                do()
            except atomic.CannotSave as error:
                assert "changed underneath" in str(error)  # noqa: PT017 - in a thread of its own

        threads = [
            Thread(target=racing, args=(do,))
            for do in (
                lambda: locked_edit.change(
                    records, lambda data: toml_edit.set_alias(data, "tier", {"C": 1}), who="x", command="set"
                ),
                lambda r=rollout: rollout_state.end(records, r, "rolled_back", "x", 1500.0),
                lambda r=rollout: rollout_state.advance(records, r, 1500.0),
            )
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = alias(records)
        assert is_at(found, {"C": 1}) or is_at(found, {"A": 1}) or is_at(found, {"A": 50, "B": 50})
        results.add(tuple(target.model for target in found.targets))

    assert results


# The state file.


@pytest.mark.parametrize("data", [b"", b"{", b'{"rollouts": {"tier": {}}}', b'{"version": 2, "rollouts": {}}'])
def test_broken_state_is_said(records, data):
    """Nothing is guessed."""
    records.rollouts.write_bytes(data)

    with pytest.raises(BrokenState, match=str(records.rollouts)):
        rollout_state.read(records)


def test_finished_rollouts_are_bounded(records, monkeypatch):
    """The last ones are kept to look at; those under way always."""
    monkeypatch.setattr(rollout_state, "FINISHED_KEPT", 2)
    running = a_rollout(records)
    for number in range(5):
        name = f"t{number}"
        over = msgspec.structs.replace(running, alias=name, state="done", ended=float(number))
        rollout_state._put(records, over)

    assert sorted(rollout_state.read(records)) == ["t3", "t4", "tier"]


def test_stamp_changes_with_the_file(records):
    """Looking costs one stat."""
    assert rollout_state.stamp(records) is None
    rollout = a_rollout(records)
    before = rollout_state.stamp(records)
    stepped(records, rollout)

    assert before != rollout_state.stamp(records)
    assert Path(records.rollouts).name == "models.rollouts.json"
    assert digest_of(FILE) == rollout.before


def test_rollout_that_could_not_be_read_again_is_not_written(records):
    """One figure that JSON has no word for would stop every other rollout."""
    with pytest.raises(ValueError, match="could not be read again"):
        a_rollout(records, guards={"errors": float("nan")})

    assert rollout_state.read(records) == {}
