"""gateway.aliases.catalogue_store and file_watch, on a real file system in real time: inotify has no mock clock."""

import os
import shutil
import threading
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import pytest
import trio
from fakes.patience import SAFETY_NET_S, best_of, measured, until
from structlog.testing import capture_logs

from catalogue.toml.faults import FaultyFile
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.files import file_reload, file_watch
from gateway.files.config_file import FILE_LIMIT_BYTES

SMALL = '[aliases]\nlarge = "small-model"\n'
LARGE = '[aliases]\nlarge = "large-model"\n'
FAULTY = '[aliases]\nlarge = "x"\nx = ""\n'
IN_FORCE_S = 0.1  # the promise of docs/reference/aliases.md, from the rename on
POLL_NEVER_S = 3600  # longer than any test: only an event can cause a reload


@pytest.fixture
def path(tmp_path):
    """A models.toml whose alias stands for `small-model`, in its own directory."""
    file = tmp_path / "conf" / "models.toml"
    file.parent.mkdir()
    file.write_text(SMALL)
    return file


@pytest.fixture
def store(path):
    store = CatalogueStore(path, poll_s=POLL_NEVER_S)
    store.load_initial()
    return store


def target(store):
    return store.current.aliases["large"].target


def rename_over(path, text):
    """Save as most editors and `mv` do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@asynccontextmanager
async def watching(store):
    async with trio.open_nursery() as nursery:
        await nursery.start(store.watch)
        yield
        nursery.cancel_scope.cancel()


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# At start.


def test_configured_file_is_loaded_at_start(path):
    """It is generation 1."""
    store = CatalogueStore(path)

    assert store.load_initial() is store.current
    assert (store.current.generation, target(store)) == (1, "small-model")
    assert store.last_error is None


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_text(FAULTY)], ids=["missing", "faulty"])
def test_configured_but_missing_or_faulty_file_is_an_error_at_start(path, spoil):
    """Better than running without the pins and aliases that an operator configured."""
    spoil(path)

    with pytest.raises(FaultyFile):
        CatalogueStore(path).load_initial()


def test_default_file_may_be_absent(tmp_path):
    """Then the catalogue is empty, and there is one warning."""
    store = CatalogueStore(None, default=tmp_path / "models.toml")

    with capture_logs() as logs:
        catalogue = store.load_initial()

    assert (catalogue.generation, len(catalogue.models), len(catalogue.aliases)) == (0, 0, 0)
    assert [entry["event"] for entry in logs] == ["catalogue_warning"]
    assert [warning.message for warning in catalogue.warnings] == ["does not exist"]


def test_default_file_must_be_valid_if_it_exists(tmp_path):
    """Only its absence is accepted."""
    (tmp_path / "models.toml").write_text(FAULTY)

    with pytest.raises(FaultyFile):
        CatalogueStore(None, default=tmp_path / "models.toml").load_initial()


async def test_default_file_that_appears_later_is_applied(tmp_path):
    """Until then its absence is no error."""
    store = CatalogueStore(None, default=tmp_path / "models.toml")
    store.load_initial()
    assert (await store.reload()).result == "unchanged"
    assert store.last_error is None

    (tmp_path / "models.toml").write_text(SMALL)

    assert (await store.reload()).result == "applied"
    (tmp_path / "models.toml").unlink()
    assert (await store.reload()).result == "rejected"


# Reloading.


async def test_reload_applies_a_new_file(store, path):
    """A new snapshot, the next generation, and the diff."""
    old = store.current
    path.write_text(LARGE)

    outcome = await store.reload()

    assert outcome.result == "applied"
    assert outcome.catalogue is store.current
    assert str(outcome.diff) == "~alias large: small-model -> large-model"
    assert store.current.generation == 2
    assert old.aliases["large"].target == "small-model"  # a request keeps the snapshot it read


async def test_reload_of_the_same_bytes_is_unchanged(store, path):
    """The snapshot and its generation stay."""
    before = store.current
    rename_over(path, SMALL)

    assert (await store.reload()).result == "unchanged"
    assert store.current is before
    assert store.reloads == {"applied": 0, "unchanged": 1, "rejected": 0}


def replace_by_directory(path):
    """Unreadable, for root too."""
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    """Opening it would block until a writer opens it."""
    path.unlink()
    os.mkfifo(path)


def replace_by_symlink_loop(path):
    """A mistake with `ln -s`."""
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: p.write_text(FAULTY), "names an alias"),
        (lambda p: p.write_text('[aliases]\nlarge = "la'), "not TOML"),
        (lambda p: p.write_bytes(b"\x00" * 100), "not TOML"),
        (lambda p: p.write_text(""), "the file is empty"),
        (lambda p: p.write_text("# all gone\n"), "the file is empty"),
        (lambda p: p.unlink(), "No such file"),
        (replace_by_directory, "not a regular file"),
        (replace_by_pipe, "not a regular file"),
        (replace_by_symlink_loop, "symbolic links"),
        (lambda p: p.write_text("#" * (FILE_LIMIT_BYTES + 1)), "larger than 4 MiB"),
        (lambda p: shutil.rmtree(p.parent), "No such file"),
    ],
    ids=[
        "faulty",
        "half-written",
        "zeros",
        "empty",
        "comments",
        "deleted",
        "unreadable",
        "pipe",
        "loop",
        "huge",
        "no directory",
    ],
)
async def test_bad_file_keeps_the_last_good_catalogue(store, path, spoil, reason):
    """`last_error` says why until the file is good again, also if its bytes are those in force."""
    before = store.current
    spoil(path)

    outcome = await store.reload()

    assert outcome.result == "rejected"
    assert store.current is before is outcome.catalogue
    assert store.last_error == outcome.faults
    assert any(reason in fault.message for fault in outcome.faults)

    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    path.write_text(SMALL)
    with capture_logs() as logs:
        assert (await store.reload()).result == "unchanged"
    assert store.last_error is None
    assert [entry["event"] for entry in logs] == ["catalogue_recovered"]
    assert store.current is before


async def test_unreadable_file_is_a_fault_that_names_the_user(store, path, monkeypatch):
    """The cause is usually root's `chmod 600`; patched, because root may run this test and could read the file."""

    def refused(opened, *arguments):
        if opened == path:
            raise PermissionError(13, "Permission denied")
        return os_open(opened, *arguments)

    os_open = os.open
    monkeypatch.setattr(os, "open", refused)

    [fault] = (await store.reload()).faults

    assert fault.message == "cannot be read: Permission denied"
    assert fault.hint == "the user that cortex runs as must be able to read it"


async def test_read_that_never_returns_is_a_fault_and_no_end_of_reloading(path, monkeypatch):
    """A network file system that hangs: one thread waits for it, and a reload works once it is back."""
    monkeypatch.setattr(file_reload, "READ_WITHIN_S", 0.05)
    store = CatalogueStore(path, poll_s=0.02)
    store.load_initial()
    back, reads = threading.Event(), []
    examine = store._file._examine

    def hang():
        reads.append(1)
        back.wait(SAFETY_NET_S)
        return examine()

    monkeypatch.setattr(store._file, "_examine", hang)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.watch)
        await until(lambda: store.last_error is not None)
        assert store.last_error[0].message == "cannot be read: no result within 0.05 s"
        assert (await store.reload()).faults == store.last_error
        assert len(reads) == 1

        rename_over(path, LARGE)
        back.set()
        await until(lambda: target(store) == "large-model")
        assert store.last_error is None
        nursery.cancel_scope.cancel()


async def test_watch_outlives_a_directory_that_hangs(store, path, monkeypatch):
    """The file is read all the same."""
    monkeypatch.setattr(file_watch, "LOOK_WITHIN_S", 0.05)
    back = threading.Event()
    monkeypatch.setattr(file_watch, "_directories_of", lambda _: back.wait(SAFETY_NET_S) and {})
    store._file._poll_s = 0.02
    async with watching(store):
        rename_over(path, LARGE)
        await until(lambda: target(store) == "large-model")
        back.set()


async def test_good_file_after_a_bad_one_clears_the_error(store, path):
    """Also if its content is new."""
    path.write_text(FAULTY)
    await store.reload()
    path.write_text(LARGE)

    assert (await store.reload()).result == "applied"
    assert store.last_error is None


async def test_no_models_on_purpose_is_accepted(store, path):
    """In the form that the hint for an empty file names."""
    path.write_text("models = []")

    assert (await store.reload()).result == "applied"
    assert not store.current.aliases


async def test_rejection_is_logged_with_every_line_and_key(store, path):
    """The log alone is enough to repair the file."""
    path.write_text('[[models]]\nid = "a"\nmin_device = 1\n')

    with capture_logs() as logs:
        await store.reload()

    [entry] = logs
    assert (entry["event"], entry["log_level"], entry["generation_in_force"]) == ("catalogue_rejected", "error", 1)
    assert [(fault["line"], fault["key"]) for fault in entry["faults"]] == [
        (1, "models[0].harness"),
        (3, "models[0].min_device"),
    ]


async def test_concurrent_reloads_each_get_a_result(store, path):
    """One applies the file; for the others it is unchanged."""
    path.write_text(LARGE)
    outcomes = []

    async def ask():
        outcomes.append((await store.reload()).result)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)

    assert sorted(outcomes) == ["applied"] + ["unchanged"] * 9
    assert store.current.generation == 2


async def test_subscribers_are_called_after_a_change(store, path):
    """Also those after one that raises; and only for changes."""
    calls = []

    def fail(old, new, changes):
        raise RuntimeError("a bug in a subscriber")

    store.subscribe(fail)
    store.subscribe(lambda old, new, changes: calls.append((old, new, store.current is new, str(changes))))
    old = store.current
    await store.reload()
    path.write_text(LARGE)

    with capture_logs() as logs:
        outcome = await store.reload()

    assert outcome.result == "applied"
    assert calls == [(old, store.current, True, "~alias large: small-model -> large-model")]
    assert "catalogue_subscriber_failed" in [entry["event"] for entry in logs]


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

    monkeypatch.setattr(file_watch, "RustNotify", refuse)
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


async def test_reading_the_file_is_no_event(store, monkeypatch):
    """Otherwise the store would read it in a loop."""
    reads = []
    examine = store._file._examine
    monkeypatch.setattr(store._file, "_examine", lambda: reads.append(1) or examine())
    async with watching(store):
        await trio.sleep(0.3)

    assert len(reads) <= 2
