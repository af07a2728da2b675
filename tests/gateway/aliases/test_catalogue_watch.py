"""gateway.aliases.catalogue_store and file_watch notice a changed file, in real time: inotify has no mock clock."""

import shutil
from itertools import cycle
from pathlib import Path

import pytest
import trio
from fakes.catalogue_files import FAULTY, LARGE, POLL_NEVER_S, SMALL, rename_over, target, watching
from fakes.patience import SAFETY_NET_S, best_of, measured, until
from structlog.testing import capture_logs

from gateway.aliases.catalogue_store import CatalogueStore
from gateway.files import file_reload, file_watch

IN_FORCE_S = 0.1  # the promise of docs/reference/aliases.md, from the rename on


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# Watching.


def in_place(path, text):
    path.write_text(text)


def rename_and_write(path, text):
    """Save as vim does: rename the old file, write a new one, delete the old one."""
    backup = path.with_name("models.toml~")
    path.rename(backup)
    path.write_text(text)
    backup.unlink()


def delete_and_recreate(path, text):
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("replace", [rename_over, in_place, rename_and_write, delete_and_recreate])
async def test_change_is_noticed(store, path, replace, monkeypatch):
    """However an editor saves; a half-written file is never rejected, however slow this process is."""
    monkeypatch.setattr(file_reload, "HALF_WRITTEN_S", POLL_NEVER_S)
    async with watching(store):
        for text, expected in [(LARGE, "large-model"), (SMALL, "small-model")] * 4:
            replace(path, text)
            await until(lambda expected=expected: target(store) == expected)
        assert store.last_error is None
    assert store.current.generation == 9
    assert store.reloads["rejected"] == 0


@measured
@pytest.mark.parametrize("replace", [rename_over, in_place, rename_and_write, delete_and_recreate])
async def test_change_is_in_force_within_100_ms(store, path, replace):
    """From the end of the save, in a process that has other work."""
    texts = cycle([(LARGE, "large-model"), (SMALL, "small-model")])

    async def swap():
        text, expected = next(texts)
        replace(path, text)
        saved_at = trio.current_time()
        await until(lambda: target(store) == expected)
        return trio.current_time() - saved_at

    async with watching(store):
        await best_of(swap, IN_FORCE_S)


async def test_config_map_update_is_noticed(tmp_path):
    """In Kubernetes the file is a symlink through `..data`, which is replaced by rename; the file never changes."""
    for version, text in (("..1", SMALL), ("..2", LARGE)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "models.toml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "models.toml").symlink_to("..data/models.toml")
    store = CatalogueStore(tmp_path / "models.toml", poll_s=POLL_NEVER_S)
    store.load_initial()

    async with watching(store):
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        shutil.rmtree(tmp_path / "..1")

        await until(lambda: target(store) == "large-model")

        rename_over(tmp_path / "..2" / "models.toml", SMALL)  # the directory that the link leads to now is watched, too
        await until(lambda: target(store) == "small-model")


async def test_symlink_to_another_directory_is_followed(tmp_path, path):
    """An edit of the file behind it is noticed."""
    link = tmp_path / "models.toml"
    link.symlink_to(path)
    store = CatalogueStore(link, poll_s=POLL_NEVER_S)
    store.load_initial()

    async with watching(store):
        rename_over(path, LARGE)
        await until(lambda: target(store) == "large-model")


async def test_bad_file_is_rejected_and_cleared_without_a_reload(store, path):
    """Each fault is reported once, however often it is read."""
    async with watching(store):
        rename_over(path, FAULTY)
        await until(lambda: store.last_error is not None)
        (path.parent / "unrelated").write_text("x")
        path.unlink()
        await until(lambda: store.last_error[0].message.startswith("cannot be read"))
        rename_over(path, SMALL)
        await until(lambda: store.last_error is None)

    assert store.reloads == {"applied": 0, "unchanged": 1, "rejected": 2}
    assert store.current.generation == 1


async def test_fault_is_rejected_only_once_it_lasts(store, path, monkeypatch):
    """A slow save, which truncates the file first, raises no alarm."""
    monkeypatch.setattr(file_reload, "HALF_WRITTEN_S", POLL_NEVER_S)
    examined = []
    examine = store._file._examine
    monkeypatch.setattr(store._file, "_examine", lambda: examined.append(examine()) or examined[-1])
    async with watching(store):
        path.write_text("")
        await until(lambda: isinstance(examined[-1], tuple))  # the fault was seen
        path.write_text(LARGE)
        await until(lambda: target(store) == "large-model")

    assert store.reloads["rejected"] == 0


async def test_fault_is_rejected_although_other_files_keep_changing(store, path):
    """Events of other files do not delay it forever."""
    async with watching(store):
        path.write_text(FAULTY)
        with trio.fail_after(SAFETY_NET_S):
            while store.last_error is None:
                (path.parent / "noise").write_text("x")
                await trio.sleep(0.01)


async def test_change_before_the_watch_is_noticed_when_it_starts(store, path):
    """No change between `load_initial` and `watch` is missed."""
    rename_over(path, LARGE)

    async with watching(store):
        assert target(store) == "large-model"


async def test_replaced_directory_is_found_by_polling_and_then_watched(path):
    """Deployment tools replace whole directories; events of the old one mean nothing then."""
    store = CatalogueStore(path, poll_s=0.1)
    store.load_initial()
    async with watching(store):
        path.parent.rename(path.parent.with_name("old"))
        path.parent.mkdir()
        path.write_text(LARGE)
        await until(lambda: target(store) == "large-model")
        store._file._poll_s = POLL_NEVER_S  # from the next round on

        await trio.sleep(0.2)  # that round has begun
        rename_over(path, SMALL)
        await until(lambda: target(store) == "small-model")


async def test_polling_alone_is_enough(path, monkeypatch):
    """Without events (inotify instances exhausted) changes are noticed more slowly, which is logged once."""

    def refuse(*_):
        raise OSError(24, "inotify instances exhausted")

    monkeypatch.setattr(file_watch, "DirectoryEvents", refuse)
    store = CatalogueStore(path, poll_s=0.05)
    store.load_initial()
    with capture_logs() as logs:
        async with watching(store):
            rename_over(path, LARGE)
            await until(lambda: target(store) == "large-model")
            rename_over(path, SMALL)
            await until(lambda: target(store) == "small-model")
    assert [entry["event"] for entry in logs].count("catalogue_events_unavailable") == 1


async def test_same_fault_is_reported_once(path, monkeypatch):
    """Every poll reads it; it is logged and counted once."""
    store = CatalogueStore(path, poll_s=0.02)
    store.load_initial()
    path.write_text(FAULTY)
    polls = []
    examine = store._file._examine
    monkeypatch.setattr(store._file, "_examine", lambda: polls.append(1) or examine())
    with capture_logs() as logs:
        async with watching(store):
            await until(lambda: len(polls) > 5)

    assert store.reloads["rejected"] == 1
    assert [entry["event"] for entry in logs] == ["catalogue_rejected"]


@measured
async def test_watch_ends_within_a_second(store):
    """Also while its thread waits for the next event."""

    async def watch_and_stop():
        async with trio.open_nursery() as nursery:
            await nursery.start(store.watch)
            await trio.sleep(0.05)
            stopped_at = trio.current_time()
            nursery.cancel_scope.cancel()
        return trio.current_time() - stopped_at

    await best_of(watch_and_stop, 1)


async def test_watching_leaves_no_descriptor_behind(store, path):
    """Also after the directory was replaced."""

    async def watch_for_a_while():
        async with watching(store):
            rename_over(path, LARGE)
            await until(lambda: target(store) == "large-model")
            rename_over(path, SMALL)
            await until(lambda: target(store) == "small-model")

    await watch_for_a_while()
    before = open_descriptors()
    for _ in range(3):
        await watch_for_a_while()

    await until(lambda: open_descriptors() <= before)


async def test_writing_to_files_that_stay_open_is_no_event(store, path, monkeypatch):
    """The store's database is beside the file by default, and is written several times a second."""
    reads = []
    examine = store._file._examine
    monkeypatch.setattr(store._file, "_examine", lambda: reads.append(1) or examine())
    with (path.parent / "cortex.db-wal").open("wb", buffering=0) as beside:
        async with watching(store):
            reads.clear()
            for _ in range(30):
                beside.write(b"x" * 4096)
                await trio.sleep(0.01)
            assert not reads
            rename_over(path, LARGE)  # an event still counts
            await until(lambda: target(store) == "large-model")


async def test_reading_the_file_is_no_event(store, monkeypatch):
    """Otherwise the store would read it in a loop."""
    reads = []
    examine = store._file._examine
    monkeypatch.setattr(store._file, "_examine", lambda: reads.append(1) or examine())
    async with watching(store):
        await trio.sleep(0.3)

    assert len(reads) <= 2
