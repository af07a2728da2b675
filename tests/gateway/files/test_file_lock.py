"""gateway.files.file_lock: programs that edit one file take turns."""

from threading import Thread

import pytest
from fakes.patience import SAFETY_NET_S

from gateway.files import file_lock
from gateway.files.atomic_write import CannotSave, replace
from gateway.files.file_lock import locked


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.toml"
    path.write_bytes(b"old")
    return path


def test_concurrent_edits_under_the_lock_are_all_kept(models, monkeypatch):
    """Ten threads each append a line; all ten lines are in the file."""
    monkeypatch.setattr(file_lock, "LOCK_DEADLINE_S", SAFETY_NET_S)

    def add(number):
        with locked(models):
            data = models.read_bytes()
            replace(models, data + b"%d\n" % number, expected=data)

    models.write_bytes(b"")
    threads = [Thread(target=add, args=(number,)) for number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(map(int, models.read_bytes().split())) == list(range(10))


def test_every_name_of_a_file_leads_to_the_same_lock(tmp_path, models, monkeypatch):
    """A symlink too; a process that does not get the lock in time gets an error."""
    monkeypatch.setattr(file_lock, "LOCK_DEADLINE_S", 0.05)
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "models.toml"
    link.symlink_to(models)

    with locked(models), pytest.raises(CannotSave, match="another process has held the edit lock"), locked(link):
        pass
    with locked(link):
        pass
