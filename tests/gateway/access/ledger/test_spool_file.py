"""The spool file: rows survive the process, and no two processes take the same."""

import fcntl
import os

import pytest
from fakes.ledger_rows import an_entry

from gateway.access.ledger import spool_file
from gateway.access.ledger.spool_file import SpoolFile, abandoned_spools


def drained(spool):
    rows = []
    while not spool.is_empty:
        found, end = spool.next_rows()
        rows += found
        spool.taken(end)
    return rows


def test_rows_come_back_in_their_order_and_then_the_file_is_gone(tmp_path, monkeypatch):
    monkeypatch.setattr(spool_file, "READ_BYTES", 1000)
    entries = [an_entry(at=float(number), alias=None if number % 2 else "é\nx") for number in range(50)]
    spool = SpoolFile.of_this_process(tmp_path)
    spool.append(entries[:30])
    first, end = spool.next_rows()
    assert 0 < len(first) < 10
    spool.taken(end)
    spool.append(entries[30:])
    assert first + drained(spool) == entries
    assert list(tmp_path.iterdir()) == []
    spool.append(entries[:1])
    assert drained(spool) == entries[:1]


def test_rows_that_were_not_taken_are_read_again(tmp_path):
    spool = SpoolFile.of_this_process(tmp_path)
    spool.append([an_entry(1.0)])
    assert spool.next_rows() == spool.next_rows()


def test_the_file_of_a_process_that_has_ended_is_adopted_once(tmp_path):
    entry = an_entry(1.0)
    spool = SpoolFile.of_this_process(tmp_path)
    spool.append([entry])
    assert abandoned_spools(tmp_path) == []  # its process lives
    spool.close()
    (adopted,) = abandoned_spools(tmp_path)
    assert abandoned_spools(tmp_path) == []
    assert drained(adopted) == [entry]
    assert list(tmp_path.iterdir()) == []


def test_a_line_that_was_cut_by_a_kill_is_skipped(tmp_path):
    spool = SpoolFile.of_this_process(tmp_path)
    spool.append([an_entry(1.0)])
    spool.close()
    with spool.path.open("ab") as file:
        file.write(b'{"id":"ab","at":')
    (adopted,) = abandoned_spools(tmp_path)
    assert len(drained(adopted)) == 1


def test_a_full_disk_leaves_no_half_row(tmp_path, monkeypatch):
    spool = SpoolFile.of_this_process(tmp_path)
    spool.append([an_entry(1.0)])
    size = spool.size
    real = os.pwrite

    def half(descriptor, data, offset):
        if len(data) < 100:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: len(data) // 2], offset)

    monkeypatch.setattr(os, "pwrite", half)
    with pytest.raises(OSError, match="No space left"):
        spool.append([an_entry(2.0)])
    monkeypatch.undo()
    assert spool.path.stat().st_size == size
    spool.append([an_entry(3.0)])
    assert [entry.at for entry in drained(spool)] == [1.0, 3.0]


def test_the_file_is_readable_by_its_owner_only(tmp_path):
    spool = SpoolFile.of_this_process(tmp_path / "state")
    spool.append([an_entry(1.0)])
    assert spool.path.stat().st_mode & 0o777 == 0o600


def test_an_empty_file_that_was_left_is_removed(tmp_path):
    (tmp_path / "usage-ab.spool").touch()
    assert abandoned_spools(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_removed_while_it_is_opened_is_not_adopted(tmp_path, monkeypatch):
    path = tmp_path / "usage-ab.spool"
    path.write_bytes(b"{}\n")
    real = fcntl.flock
    monkeypatch.setattr(spool_file.fcntl, "flock", lambda *args: (path.unlink(missing_ok=True), real(*args)))
    assert abandoned_spools(tmp_path) == []
