"""gateway.files.atomic: a file is replaced whole or not at all."""

import os
import stat
from threading import Thread

import pytest
from fakes.patience import SAFETY_NET_S

from gateway.files import atomic
from gateway.files.atomic import CannotSave, ChangedUnderneath, locked, replace


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.toml"
    path.write_bytes(b"old")
    return path


def beside(path):
    """What is in its directory."""
    return sorted(each.name for each in path.parent.iterdir())


def test_replace_keeps_mode_and_leaves_nothing_beside_it(models):
    """A new file under the old name, as the old one was."""
    models.chmod(0o640)
    before = models.stat().st_ino

    replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"new"
    assert stat.S_IMODE(models.stat().st_mode) == 0o640
    assert models.stat().st_ino != before
    assert beside(models) == ["models.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_replace_keeps_the_owner(models):
    """Root may edit what belongs to the service."""
    os.chown(models, 1234, 4321)

    replace(models, b"new", expected=b"old")

    assert (models.stat().st_uid, models.stat().st_gid) == (1234, 4321)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of somebody else's")
def test_replace_that_cannot_keep_the_owner_is_refused(models, monkeypatch):
    """Who may only write the file does not take it over: the gateway may not be able to read it then."""

    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    os.chown(models, 1234, 4321)
    monkeypatch.setattr(os, "chown", forbidden)

    with pytest.raises(CannotSave, match=r"its owner \(uid 1234, gid 4321\) could not be kept"):
        replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"old"
    assert beside(models) == ["models.toml"]


def test_replace_through_symlinks_replaces_what_they_lead_to(tmp_path, models):
    """A ConfigMap's or a dotfile's link stays a link."""
    folder = tmp_path / "etc"
    folder.mkdir()
    link = folder / "models.toml"
    link.symlink_to("../models.toml")

    replace(link, b"new", expected=b"old")

    assert link.is_symlink()
    assert models.read_bytes() == b"new"
    assert beside(link) == ["models.toml"]


def test_replace_of_what_changed_underneath_is_refused(models):
    """Somebody's edit is not lost to somebody else's."""
    models.write_bytes(b"an editor was here")

    with pytest.raises(ChangedUnderneath, match="changed underneath; nothing was written"):
        replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"an editor was here"
    assert beside(models) == ["models.toml"]


def test_replace_that_cannot_write_leaves_the_file(models, monkeypatch):
    """A full disk is said, and harms nothing."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CannotSave, match="No space left on device"):
        replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"old"
    assert beside(models) == ["models.toml"]


def test_replace_of_a_missing_file_says_so(tmp_path):
    """There is nothing to be expected in it."""
    with pytest.raises(CannotSave, match="No such file or directory"):
        replace(tmp_path / "models.toml", b"new", expected=b"")


def test_edits_that_take_turns_lose_nothing(models, monkeypatch):
    """Ten shells, each adding a line of its own: every line is there in the end."""
    monkeypatch.setattr(atomic, "LOCK_DEADLINE_S", SAFETY_NET_S)

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


def test_lock_is_one_for_every_name_of_a_file(tmp_path, models, monkeypatch):
    """Through a link or not; and who cannot have it in time is told."""
    monkeypatch.setattr(atomic, "LOCK_DEADLINE_S", 0.05)
    (tmp_path / "etc").mkdir()
    link = tmp_path / "etc" / "models.toml"
    link.symlink_to(models)

    with locked(models), pytest.raises(CannotSave, match="another edit"), locked(link):
        pass
    with locked(link):
        pass
