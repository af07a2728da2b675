"""gateway.files.atomic_write: a file is replaced whole or not at all."""

import os
import stat

import pytest

from gateway.files.atomic_write import CannotSave, ChangedUnderneath, replace


@pytest.fixture
def models(tmp_path):
    path = tmp_path / "models.toml"
    path.write_bytes(b"old")
    return path


def names_in_directory_of(path):
    return sorted(each.name for each in path.parent.iterdir())


def test_replace_keeps_the_mode_and_leaves_no_other_file(models):
    """It is a new file with the old name and mode."""
    models.chmod(0o640)
    before = models.stat().st_ino

    replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"new"
    assert stat.S_IMODE(models.stat().st_mode) == 0o640
    assert models.stat().st_ino != before
    assert names_in_directory_of(models) == ["models.toml"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_replace_keeps_the_owner(models):
    """Root may edit a file of the service's user."""
    os.chown(models, 1234, 4321)

    replace(models, b"new", expected=b"old")

    assert (models.stat().st_uid, models.stat().st_gid) == (1234, 4321)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file of another user")
def test_replace_that_cannot_keep_the_owner_is_refused(models, monkeypatch):
    """A user who may only write the file does not become its owner: the gateway might not be able to read it then."""

    def forbidden(*_):
        raise PermissionError(1, "Operation not permitted")

    os.chown(models, 1234, 4321)
    monkeypatch.setattr(os, "chown", forbidden)

    with pytest.raises(CannotSave, match=r"its owner \(uid 1234, gid 4321\) cannot be kept"):
        replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"old"
    assert names_in_directory_of(models) == ["models.toml"]


def test_replace_through_a_symlink_replaces_the_file_behind_it(tmp_path, models):
    """The symlink of a ConfigMap or of a dotfile manager stays a symlink."""
    folder = tmp_path / "etc"
    folder.mkdir()
    link = folder / "models.toml"
    link.symlink_to("../models.toml")

    replace(link, b"new", expected=b"old")

    assert link.is_symlink()
    assert models.read_bytes() == b"new"
    assert names_in_directory_of(link) == ["models.toml"]


def test_replace_of_a_file_that_changed_meanwhile_is_refused(models):
    """One edit does not overwrite another."""
    models.write_bytes(b"an editor was here")

    with pytest.raises(ChangedUnderneath, match="changed during the edit; nothing was written"):
        replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"an editor was here"
    assert names_in_directory_of(models) == ["models.toml"]


def test_replace_that_cannot_write_leaves_the_old_content(models, monkeypatch):
    """A full disk is an error with its reason, and the file stays as it is."""

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(CannotSave, match="No space left on device"):
        replace(models, b"new", expected=b"old")

    assert models.read_bytes() == b"old"
    assert names_in_directory_of(models) == ["models.toml"]


def test_replace_of_a_missing_file_is_an_error(tmp_path):
    """`replace` does not create files."""
    with pytest.raises(CannotSave, match="No such file or directory"):
        replace(tmp_path / "models.toml", b"new", expected=b"")
