"""gateway.aliases.files.file_history: earlier files, named by their hashes, bounded."""

import os

import pytest

from gateway.aliases.files.file_history import Announcement, FileHistory, digest_of

ANNOUNCEMENT = Announcement(who="anna", command="cortex alias set a B", before="0" * 64, at=1.5)


@pytest.fixture
def history(tmp_path):
    return FileHistory(tmp_path / "models.history", files=3, total_bytes=1000)


def test_get_returns_the_stored_bytes(history):
    """Under the hash that the catalogue has as its digest."""
    data = b"\xef\xbb\xbf[aliases]\r\n# \xc3\xa9\n"

    assert history.get(history.keep(data)) == data
    assert history.get(digest_of(b"other")) is None


def test_changed_file_is_not_returned(history):
    """A rollback to other content would be worse than none."""
    digest = history.keep(b"data")
    (history.folder / f"{digest}.toml").write_bytes(b"tampered")

    assert history.get(digest) is None


def test_changed_file_is_written_again(history):
    """The next time that file is in force."""
    digest = history.keep(b"data")
    (history.folder / f"{digest}.toml").write_bytes(b"tampered")

    assert history.get(history.keep(b"data")) == b"data"


@pytest.mark.parametrize("digest", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_invalid_hash_is_not_found(history, digest):
    """It may come from a command line."""
    history.keep(b"data")

    assert history.get(digest) is None


def age(history, digest, seconds):
    os.utime(history.folder / f"{digest}.toml", (seconds, seconds))


def test_least_recently_used_file_is_deleted_first(history):
    """Storing a file again counts as use."""
    one, two, three = (history.keep(data) for data in (b"1", b"2", b"3"))
    for seconds, digest in enumerate((one, two, three)):
        age(history, digest, seconds)
    history.keep(b"1")

    history.keep(b"4")

    assert history.get(two) is None
    assert {history.get(one), history.get(three)} == {b"1", b"3"}


def test_history_is_bounded_in_bytes_but_keeps_the_newest_file(history):
    """Even a huge file is kept while it is the newest: it is in force."""
    old = history.keep(b"x" * 600)
    age(history, old, 1)

    new = history.keep(b"y" * 600)
    assert (history.get(old), history.get(new)) == (None, b"y" * 600)

    huge = history.keep(b"z" * 5000)
    assert history.get(huge) == b"z" * 5000


def test_announcement_is_returned_until_it_is_removed(history):
    """It is about one edit, not about every edit that brings the same file."""
    digest = history.keep(b"data")
    assert history.announcement_of(digest) is None

    history.announce(digest, ANNOUNCEMENT)
    assert history.announcement_of(digest) == ANNOUNCEMENT

    history.remove_announcement(digest)
    assert history.announcement_of(digest) is None
    history.remove_announcement(digest)


def test_announcement_is_deleted_with_its_file(history):
    """Announcements do not accumulate."""
    digest = history.keep(b"data")
    history.announce(digest, ANNOUNCEMENT)
    age(history, digest, 1)
    for data in (b"1", b"2", b"3"):
        history.keep(data)

    assert history.announcement_of(digest) is None
    assert len(list(history.folder.iterdir())) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_root_writes_for_the_owner_of_the_directory(tmp_path, history):
    """`sudo cortex alias set` must not lock the service out of its own history."""
    os.chown(tmp_path, 1234, 4321)

    digest = history.keep(b"data")

    for path in (history.folder, history.folder / f"{digest}.toml"):
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)
