"""gateway.aliases.files.audit_log: a chain of lines, across files and crashes."""

import json
import multiprocessing
import os

import pytest

from gateway.aliases.files import audit_log
from gateway.aliases.files.audit_log import GENESIS, Trail


@pytest.fixture
def trail(tmp_path):
    return Trail(tmp_path / "models.audit.jsonl", rotate_bytes=10**6, kept=0)


def small(tmp_path, kept=0):
    """One that is put aside after every second line."""
    return Trail(tmp_path / "models.audit.jsonl", rotate_bytes=400, kept=kept)


def fill(trail, count=5):
    return [trail.append({"event": "applied", "summary": f"change {number}"}) for number in range(count)]


def said(trail):
    return [line.said["summary"] for line in trail.newest_first()][::-1]


def edit(path, change):
    """As a careless hand would."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def test_lines_are_a_chain(trail):
    """Each carries the hash of the one before, the first one zeros."""
    lines = fill(trail, 3)

    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert [line["previous"] for line in lines] == [GENESIS, lines[0]["hash"], lines[1]["hash"]]
    assert [json.loads(line) for line in trail.path.read_text().splitlines()] == lines
    verdict = trail.verify()
    assert (verdict.lines, verdict.first, verdict.last, verdict.head) == (3, 1, 3, lines[2]["hash"])
    assert verdict.broken is None


def test_empty_trail_is_in_order(trail):
    """Nothing is there, so nothing is wrong."""
    assert trail.verify() == audit_log.Verdict()
    assert list(trail.newest_first()) == []


@pytest.mark.parametrize(
    ("change", "number", "reason"),
    [
        (lambda lines: lines.__setitem__(1, lines[1].replace(b"change 1", b"change 9")), 2, "its hash is another"),
        (lambda lines: lines.__setitem__(4, lines[4].replace(b"change 4", b"change 9")), 5, "its hash is another"),
        (lambda lines: lines.pop(2), 3, "number 3 is missing before it"),
        (lambda lines: lines.insert(2, lines[1]), 3, "does not follow from number 2"),
        (lambda lines: lines.insert(3, b"{}\n"), 4, "its hash is another"),
        (lambda lines: lines.insert(0, b"\n"), 1, "its hash is another"),
        (lambda lines: lines.__setitem__(slice(1, 3), lines[2:0:-1]), 2, "number 2 is missing before it"),
    ],
)
def test_verify_names_the_first_broken_line(trail, change, number, reason):
    """A changed one, a missing one, one that was put in: where and why."""
    fill(trail)
    edit(trail.path, change)

    broken = trail.verify().broken

    assert (broken.path, broken.number) == (trail.path, number)
    assert reason in broken.reason


def test_rewritten_line_with_a_hash_of_its_own_is_found_by_the_next(trail):
    """Who mends the hash of one line breaks the chain at the following one."""
    fill(trail)
    body = {"seq": 3, "event": "applied", "summary": "nothing happened", "previous": said_hash(trail, 2)}
    line, _ = audit_log._sealed(body)
    edit(trail.path, lambda lines: lines.__setitem__(2, line))

    broken = trail.verify().broken

    assert (broken.number, broken.reason) == (4, "is number 4 and does not follow from number 3 before it")


def said_hash(trail, seq):
    return next(line.said["hash"] for line in trail.newest_first() if line.said["seq"] == seq)


def test_chain_goes_on_after_a_broken_line(trail):
    """The trail is not lost for the future; verify keeps naming the break."""
    fill(trail, 3)
    edit(trail.path, lambda lines: lines.__setitem__(2, b"garbage\n"))

    assert trail.append({"summary": "after"})["seq"] == 3
    assert trail.verify().broken.number == 3


# Rotation.


def test_chain_goes_through_rotated_files(tmp_path):
    """In order, however many there are; other files beside them are nobody's business."""
    trail = small(tmp_path)
    fill(trail, 25)
    (tmp_path / "models.audit.jsonl.bak").write_text("mine")

    assert len(list(tmp_path.glob("models.audit.jsonl.0*"))) > 5
    assert said(trail) == [f"change {number}" for number in range(25)]
    assert (trail.verify().lines, trail.verify().broken) == (25, None)


def test_oldest_rotated_files_go(tmp_path):
    """What is left is a chain that begins later, and says where."""
    trail = small(tmp_path, kept=2)
    fill(trail, 25)

    verdict = trail.verify()

    assert len(list(tmp_path.glob("models.audit.jsonl.0*"))) == 2
    assert verdict.broken is None
    assert (verdict.first, verdict.last) == (25 - verdict.lines + 1, 25)


@pytest.mark.parametrize("kept", [0, 1])
def test_file_put_aside_while_it_is_read_is_no_line_missing(tmp_path, monkeypatch, kept):
    """Whoever verifies takes no lock, so a writer may rotate between the listing and the reading."""
    trail, writer = small(tmp_path, kept), small(tmp_path, kept)
    fill(writer, 5)
    listed = trail._files

    def listed_too_early():
        files = listed()
        monkeypatch.setattr(trail, "_files", listed)
        fill(writer, 4)
        return files

    monkeypatch.setattr(trail, "_files", listed_too_early)
    verdict = trail.verify()
    monkeypatch.setattr(trail, "_files", listed_too_early)
    shown = [line.said["seq"] for line in trail.newest_first()]

    assert (verdict.broken, verdict.last) == (None, 9)
    assert shown == sorted(shown, reverse=True)


def test_rotated_file_that_is_missing_is_found(tmp_path):
    """By the line after the gap."""
    trail = small(tmp_path)
    fill(trail, 12)
    first, second, *_ = sorted(tmp_path.glob("models.audit.jsonl.0*"))
    third_begins = int(second.suffix[1:]) + 1
    second.unlink()

    broken = trail.verify().broken

    assert broken.reason == f"is number {third_begins}, and number {int(first.suffix[1:]) + 1} is missing before it"


def test_break_in_a_rotated_file_is_named_with_it(tmp_path):
    """Path and line, as an editor takes them."""
    trail = small(tmp_path)
    fill(trail, 6)
    oldest = min(tmp_path.glob("models.audit.jsonl.0*"))
    edit(oldest, lambda lines: lines.__setitem__(0, lines[0].replace(b"change", b"chance")))

    assert str(trail.verify().broken).startswith(f"{oldest}:1: ")


# Crashes.


@pytest.mark.parametrize("kept_bytes", [1, 20, 100])
def test_torn_last_line_is_recognised_and_gives_way(trail, kept_bytes):
    """A crash in the middle of writing: verify says so without alarm, and the next line takes the place."""
    fill(trail, 2)
    whole = trail.path.read_bytes()
    fill(trail, 1)
    trail.path.write_bytes(trail.path.read_bytes()[: len(whole) + kept_bytes])

    assert trail.verify().torn_bytes == kept_bytes
    assert trail.verify().broken is None
    line = trail.append({"summary": "after"})

    assert (line["seq"], line["torn_bytes"]) == (3, kept_bytes)
    assert (trail.verify().lines, trail.verify().broken, trail.verify().torn_bytes) == (3, None, 0)


def test_line_that_lacks_only_its_end_is_kept(trail):
    """All of it is there: it counts."""
    fill(trail, 2)
    trail.path.write_bytes(trail.path.read_bytes().removesuffix(b"\n"))

    assert trail.verify().lines == 2
    assert trail.append({"summary": "after"})["seq"] == 3
    assert trail.verify().lines == 3


def test_long_torn_line_is_found(trail, monkeypatch):
    """Longer than what is looked at first."""
    monkeypatch.setattr(audit_log, "_WINDOW_BYTES", 16)
    fill(trail, 2)
    with trail.path.open("ab") as file:
        file.write(b'{"seq":3,' + b" " * 5000)

    assert trail.append({"summary": "after"})["torn_bytes"] == 5009
    assert trail.verify().lines == 3


def test_torn_line_at_the_end_of_a_rotated_file_is_a_break(tmp_path):
    """Nobody was writing there."""
    trail = small(tmp_path)
    fill(trail, 6)
    oldest = min(tmp_path.glob("models.audit.jsonl.0*"))
    oldest.write_bytes(oldest.read_bytes()[:-20])

    assert trail.verify().broken.path == oldest


def test_write_that_fails_halfway_is_mended_by_the_next(trail, monkeypatch):
    """A full disk takes the beginning of a line, and later there is room again."""
    fill(trail, 1)
    write = os.write

    def full(file, data):
        write(file, data[:30])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        trail.append({"summary": "lost"})
    monkeypatch.undo()

    assert trail.append({"summary": "after"})["seq"] == 2
    assert said(trail) == ["change 0", "after"]


def _append_many(path, who):
    trail = Trail(path, rotate_bytes=2000, kept=0)
    for number in range(20):
        trail.append({"summary": f"{who} {number}"})


def test_line_is_on_disk_when_append_returns(trail, monkeypatch):
    """What was in force before a power cut is in the trail after it."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.pread(file, 10_000, 0)))

    fill(trail, 2)

    assert [len(written.splitlines()) for written in synced] == [1, 2]


def test_file_that_is_put_aside_while_somebody_waits_for_it_gets_no_further_line(trail, monkeypatch):
    """Another process was quicker and rotated: the line belongs into the file that grows now."""
    fill(trail, 1)
    aside = trail.path.with_name(f"{trail.path.name}.000000001")

    def lock_after_another(file, how):
        if not aside.exists():
            trail.path.rename(aside)

    monkeypatch.setattr(audit_log.fcntl, "flock", lock_after_another)
    trail.append({"event": "applied", "summary": "change 1"})

    assert (len(aside.read_bytes().splitlines()), len(trail.path.read_bytes().splitlines())) == (1, 1)
    verdict = trail.verify()
    assert (verdict.lines, verdict.broken) == (2, None)


def test_processes_that_append_at_once_make_one_chain(tmp_path):
    """Through rotations, too: each line is written under a lock."""
    path = tmp_path / "models.audit.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(path, who)) for who in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    trail = Trail(path, rotate_bytes=2000, kept=0)
    assert (trail.verify().lines, trail.verify().broken) == (60, None)
    assert sorted(said(trail)) == sorted(f"{who} {number}" for who in range(3) for number in range(20))
