"""gateway.aliases.catalogue_store on a real file system: loading at the start, and reloading."""

import os
import shutil
import threading

import pytest
import trio
import trio.testing
from fakes.catalogue_files import FAULTY, LARGE, SMALL, rename_over, target, watching
from fakes.patience import SAFETY_NET_S, until
from structlog.testing import capture_logs

from catalogue.toml.faults import FaultyFile
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.files import file_reload, file_watch
from gateway.files.config_file import FILE_LIMIT_BYTES

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


async def test_write_is_applied_as_its_author_s_however_soon_the_file_is_read(store, path):
    """The watch reads a new file at once: without a lock it could apply it first, and the author's change be none."""
    actors = []
    store.subscribe(lambda *_: actors.append(store.last_actor))
    async with trio.open_nursery() as nursery:

        async def save():
            rename_over(path, LARGE)
            nursery.start_soon(store.reload)
            await trio.testing.wait_all_tasks_blocked(0.05)
            return "saved"

        saved, outcome = await store.write(save, actor="ann")
    assert (saved, outcome.result, actors) == ("saved", "applied", ["ann"])


async def test_write_that_never_returns_is_an_error_and_no_end_of_reloading(store, path, monkeypatch):
    """A network file system that hangs."""
    monkeypatch.setattr(file_reload, "WRITTEN_WITHIN_S", 0.05)
    with pytest.raises(TimeoutError, match=r"no result of the write within 0.05 s"):
        await store.write(trio.sleep_forever, actor="ann")
    path.write_text(LARGE)
    assert (await store.reload()).result == "applied"


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
