"""gateway.aliases.files.audit_log: a hash chain of lines, across rotated files and crashes."""

import json
import multiprocessing
import os

import pytest

from gateway.aliases.files import audit_log
from gateway.aliases.files.audit_log import GENESIS, AuditHead, AuditLog, Verification


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "models.audit.jsonl", rotate_bytes=10**6, rotated_files=0)


def rotating_log(tmp_path, rotated_files=0):
    """A log that is rotated after every second line."""
    return AuditLog(tmp_path / "models.audit.jsonl", rotate_bytes=400, rotated_files=rotated_files)


def fill(log, count=5):
    return [log.append({"event": "applied", "summary": f"change {number}"}) for number in range(count)]


def summaries(log):
    return [line.fields["summary"] for line in log.newest_first()][::-1]


def edit_lines(path, change):
    """Change the file by hand."""
    lines = path.read_bytes().splitlines(keepends=True)
    change(lines)
    path.write_bytes(b"".join(lines))


def test_each_line_has_the_hash_of_the_line_before(log):
    """The first line has zeros."""
    lines = fill(log, 3)

    assert [line["seq"] for line in lines] == [1, 2, 3]
    assert [line["previous"] for line in lines] == [GENESIS, lines[0]["hash"], lines[1]["hash"]]
    assert [json.loads(line) for line in log.path.read_text().splitlines()] == lines
    verification = log.verify()
    assert (verification.lines, verification.first, verification.last, verification.head) == (3, 1, 3, lines[2]["hash"])
    assert verification.broken is None


def test_empty_log_is_intact(log):
    """There are no lines, so none is broken."""
    assert log.verify() == Verification()
    assert list(log.newest_first()) == []


@pytest.mark.parametrize(
    ("change", "number", "reason"),
    [
        (lambda lines: lines.__setitem__(1, lines[1].replace(b"change 1", b"change 9")), 2, "its hash does not match"),
        (lambda lines: lines.__setitem__(4, lines[4].replace(b"change 4", b"change 9")), 5, "its hash does not match"),
        (lambda lines: lines.pop(2), 3, "number 3 is missing before it"),
        (lambda lines: lines.insert(2, lines[1]), 3, "does not follow number 2"),
        (lambda lines: lines.insert(3, b"{}\n"), 4, "its hash does not match"),
        (lambda lines: lines.insert(0, b"\n"), 1, "its hash does not match"),
        (lambda lines: lines.__setitem__(slice(1, 3), lines[2:0:-1]), 2, "number 2 is missing before it"),
    ],
)
def test_verify_names_the_first_broken_line(log, change, number, reason):
    """A changed, a missing and an inserted line: where and why."""
    fill(log)
    edit_lines(log.path, change)

    broken = log.verify().broken

    assert (broken.path, broken.number) == (log.path, number)
    assert reason in broken.reason


def test_rewritten_line_with_a_valid_hash_breaks_the_chain_at_the_next_line(log):
    """Recomputing the hash of one line is not enough."""
    fill(log)
    body = {"seq": 3, "event": "applied", "summary": "nothing happened", "previous": hash_of(log, 2)}
    line, _ = audit_log._sealed(body)
    edit_lines(log.path, lambda lines: lines.__setitem__(2, line))

    broken = log.verify().broken

    assert (broken.number, broken.reason) == (4, "is number 4 and does not follow number 3, the line before it")


def hash_of(log, seq):
    return next(line.fields["hash"] for line in log.newest_first() if line.fields["seq"] == seq)


def test_append_after_a_broken_line_goes_on(log):
    """Later lines can be written; verify still names the break."""
    fill(log, 3)
    edit_lines(log.path, lambda lines: lines.__setitem__(2, b"garbage\n"))

    assert log.append({"summary": "after"})["seq"] == 4
    assert log.verify().broken.number == 3


# Lines missing at the end.


def cut(log, lines):
    """Remove that many lines from the end of the current file."""
    log.path.write_bytes(b"".join(log.path.read_bytes().splitlines(keepends=True)[:-lines]))


@pytest.mark.parametrize("lines", [1, 2, 3])
def test_log_that_was_cut_at_its_end_is_broken(log, lines):
    """All that is left is intact; the head file tells what was there."""
    fill(log, 3)
    cut(log, lines)

    verification = log.verify()

    assert verification.lines == 3 - lines
    assert str(verification.broken) == (
        f"{log.path}: the log ends with number {3 - lines}, and number 3 was written after it: "
        "the log was cut, emptied or replaced"
    )


@pytest.mark.parametrize("lines", [1, 3])
def test_gap_stays_visible_when_the_log_goes_on(log, lines):
    """The next line follows the last one that was written, not the last one that is left."""
    fill(log, 3)
    cut(log, lines)

    assert log.append({"summary": "after"})["seq"] == 4
    assert "is missing before it" in str(log.verify().broken)


def test_emptied_rotated_log_is_broken(tmp_path):
    """Also if the current file has just been rotated, so that it is not missed."""
    log = rotating_log(tmp_path)
    fill(log, 25)
    newest = log._rotated()[-1]
    newest.write_bytes(b"")
    assert log.verify().broken is not None


@pytest.mark.parametrize("is_deleted", [False, True])
def test_writer_that_remembers_its_last_line_detects_a_cut_without_the_head_file(log, is_deleted):
    """The gateway does, so removing the head file as well hides nothing."""
    fill(log, 3)
    last = next(log.newest_first()).fields
    known = AuditHead(last["seq"], last["hash"])
    log.head_path.unlink()
    log.path.unlink() if is_deleted else cut(log, 1)

    assert log.verify(known=known).broken is not None
    assert log.append({"summary": "after"}, known=known)["seq"] == 4
    assert log.verify().broken is not None


def test_replaced_last_line_is_broken(log):
    """A shorter log that was continued with lines of its own has the right number and another hash."""
    fill(log, 2)
    whole, head = log.path.read_bytes(), log.head_path.read_bytes()
    fill(log, 1)
    real_head = log.head_path.read_bytes()
    log.path.write_bytes(whole)
    log.head_path.write_bytes(head)
    log.append({"summary": "forged"})
    log.head_path.write_bytes(real_head)

    assert "is not the line that was written under this number" in str(log.verify().broken)


def test_intact_log_without_a_head_file_is_intact(log):
    """An earlier version wrote none."""
    fill(log, 3)
    log.head_path.unlink()
    assert log.verify().broken is None
    log.head_path.write_text("garbage")
    assert log.verify().broken is None


# Rotation.


def test_chain_spans_rotated_files(tmp_path):
    """In order, however many there are; other files beside them are ignored."""
    log = rotating_log(tmp_path)
    fill(log, 25)
    (tmp_path / "models.audit.jsonl.bak").write_text("mine")

    assert len(list(tmp_path.glob("models.audit.jsonl.0*"))) > 5
    assert summaries(log) == [f"change {number}" for number in range(25)]
    assert (log.verify().lines, log.verify().broken) == (25, None)


def test_oldest_rotated_files_are_deleted(tmp_path):
    """The remaining chain begins later, and verify says where."""
    log = rotating_log(tmp_path, rotated_files=2)
    fill(log, 25)

    verification = log.verify()

    assert len(list(tmp_path.glob("models.audit.jsonl.0*"))) == 2
    assert verification.broken is None
    assert (verification.first, verification.last) == (25 - verification.lines + 1, 25)


@pytest.mark.parametrize("kept", [0, 1])
def test_file_rotated_during_verify_is_no_missing_line(tmp_path, monkeypatch, kept):
    """Verify takes no lock, so a writer may rotate between the listing and the reading."""
    log, writer = rotating_log(tmp_path, kept), rotating_log(tmp_path, kept)
    fill(writer, 5)
    listed = log._files

    def listed_too_early():
        files = listed()
        monkeypatch.setattr(log, "_files", listed)
        fill(writer, 4)
        return files

    monkeypatch.setattr(log, "_files", listed_too_early)
    verification = log.verify()
    monkeypatch.setattr(log, "_files", listed_too_early)
    read = [line.fields["seq"] for line in log.newest_first()]

    assert (verification.broken, verification.last) == (None, 9)
    assert read == sorted(read, reverse=True)


def test_missing_rotated_file_is_a_break(tmp_path):
    """At the first line after the gap."""
    log = rotating_log(tmp_path)
    fill(log, 12)
    first, second, *_ = sorted(tmp_path.glob("models.audit.jsonl.0*"))
    third_begins = int(second.suffix[1:]) + 1
    second.unlink()

    broken = log.verify().broken

    assert broken.reason == f"is number {third_begins}, and number {int(first.suffix[1:]) + 1} is missing before it"


def test_break_in_a_rotated_file_names_that_file(tmp_path):
    """Path and line number, in the form that editors open."""
    log = rotating_log(tmp_path)
    fill(log, 6)
    oldest = min(tmp_path.glob("models.audit.jsonl.0*"))
    edit_lines(oldest, lambda lines: lines.__setitem__(0, lines[0].replace(b"change", b"chance")))

    assert str(log.verify().broken).startswith(f"{oldest}:1: ")


# Crashes.


@pytest.mark.parametrize("kept_bytes", [1, 20, 100])
def test_torn_last_line_is_no_break_and_is_replaced(log, kept_bytes):
    """After a crash during a write: verify reports the bytes, and the next append replaces them."""
    fill(log, 2)
    whole, head = log.path.read_bytes(), log.head_path.read_bytes()
    fill(log, 1)
    log.path.write_bytes(log.path.read_bytes()[: len(whole) + kept_bytes])
    log.head_path.write_bytes(head)  # it is written after the line

    assert log.verify().torn_bytes == kept_bytes
    assert log.verify().broken is None
    line = log.append({"summary": "after"})

    assert (line["seq"], line["torn_bytes"]) == (3, kept_bytes)
    assert (log.verify().lines, log.verify().broken, log.verify().torn_bytes) == (3, None, 0)


def test_line_that_lacks_only_its_newline_is_kept(log):
    """It is complete, so it counts."""
    fill(log, 2)
    log.path.write_bytes(log.path.read_bytes().removesuffix(b"\n"))

    assert log.verify().lines == 2
    assert log.append({"summary": "after"})["seq"] == 3
    assert log.verify().lines == 3


def test_long_torn_line_is_found(log, monkeypatch):
    """Also if it is longer than the part of the file that is read first."""
    monkeypatch.setattr(audit_log, "_TAIL_BYTES", 16)
    fill(log, 2)
    with log.path.open("ab") as file:
        file.write(b'{"seq":3,' + b" " * 5000)

    assert log.append({"summary": "after"})["torn_bytes"] == 5009
    assert log.verify().lines == 3


def test_torn_line_at_the_end_of_a_rotated_file_is_a_break(tmp_path):
    """Rotated files are complete."""
    log = rotating_log(tmp_path)
    fill(log, 6)
    oldest = min(tmp_path.glob("models.audit.jsonl.0*"))
    oldest.write_bytes(oldest.read_bytes()[:-20])

    assert log.verify().broken.path == oldest


def test_write_that_fails_halfway_is_replaced_by_the_next(log, monkeypatch):
    """A full disk takes the beginning of a line; later there is space again."""
    fill(log, 1)
    write = os.write

    def full(file, data):
        write(file, data[:30])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        log.append({"summary": "lost"})
    monkeypatch.undo()

    assert log.append({"summary": "after"})["seq"] == 2
    assert summaries(log) == ["change 0", "after"]


def _append_many(path, name):
    log = AuditLog(path, rotate_bytes=2000, rotated_files=0)
    for number in range(20):
        log.append({"summary": f"{name} {number}"})


def test_line_is_on_disk_when_append_returns(log, monkeypatch):
    """The log survives a power failure."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.pread(file, 10_000, 0)))

    fill(log, 2)

    assert [len(written.splitlines()) for written in synced] == [1, 2]


def test_append_goes_to_the_new_file_after_a_rotation_by_another_process(log, monkeypatch):
    """Another process rotated while this one waited for the lock."""
    fill(log, 1)
    rotated = log.path.with_name(f"{log.path.name}.000000001")

    def lock_after_another(file, how):
        if not rotated.exists():
            log.path.rename(rotated)

    monkeypatch.setattr(audit_log.fcntl, "flock", lock_after_another)
    log.append({"event": "applied", "summary": "change 1"})

    assert (len(rotated.read_bytes().splitlines()), len(log.path.read_bytes().splitlines())) == (1, 1)
    verification = log.verify()
    assert (verification.lines, verification.broken) == (2, None)


def test_processes_that_append_concurrently_write_one_chain(tmp_path):
    """Through rotations, too: each append takes a lock."""
    path = tmp_path / "models.audit.jsonl"
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_append_many, args=(path, name)) for name in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)

    log = AuditLog(path, rotate_bytes=2000, rotated_files=0)
    assert (log.verify().lines, log.verify().broken) == (60, None)
    assert sorted(summaries(log)) == sorted(f"{name} {number}" for name in range(3) for number in range(20))
