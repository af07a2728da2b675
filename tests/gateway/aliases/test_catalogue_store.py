"""The door for new catalogues, on a real file system with real time: inotify knows no mock clock."""

import os
import shutil
from contextlib import asynccontextmanager
from itertools import cycle
from pathlib import Path

import pytest
import trio
from fakes.patience import SAFETY_NET_S, best_of, measured, until
from structlog.testing import capture_logs

from catalogue.models import FaultyFile
from gateway.aliases import catalogue_store
from gateway.aliases.catalogue_store import CatalogueKeeper

SMALL = '[aliases]\nlarge = "small-model"\n'
LARGE = '[aliases]\nlarge = "large-model"\n'
FAULTY = '[aliases]\nlarge = "x"\nx = ""\n'
SWAP_S = 0.1  # issue 2: in force within 100 ms of the rename
POLL_NEVER_S = 3600  # longer than any safety net: only an event can have done it


@pytest.fixture
def path(tmp_path):
    """A models.toml whose alias stands for `small-model`, in a directory of its own."""
    file = tmp_path / "conf" / "models.toml"
    file.parent.mkdir()
    file.write_text(SMALL)
    return file


@pytest.fixture
def keeper(path):
    keeper = CatalogueKeeper(path, poll_s=POLL_NEVER_S)  # only events will do, unless a test says otherwise
    keeper.load_initial()
    return keeper


def target(keeper):
    return keeper.current.aliases["large"].target


def rename_over(path, text):
    """As an editor or `mv` does it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@asynccontextmanager
async def watching(keeper):
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.watch)
        yield
        nursery.cancel_scope.cancel()


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


# At start.


def test_configured_file_is_loaded_at_start(path):
    """It is generation 1."""
    keeper = CatalogueKeeper(path)

    assert keeper.load_initial() is keeper.current
    assert (keeper.current.generation, target(keeper)) == (1, "small-model")
    assert keeper.last_error is None


@pytest.mark.parametrize("spoil", [lambda p: p.unlink(), lambda p: p.write_text(FAULTY)], ids=["missing", "faulty"])
def test_configured_but_missing_or_faulty_refuses_to_start(path, spoil):
    """Rather that than to run without the pins and aliases an operator wrote down."""
    spoil(path)

    with pytest.raises(FaultyFile):
        CatalogueKeeper(path).load_initial()


def test_default_file_may_be_absent(tmp_path):
    """Then there is no catalogue, and one warning."""
    keeper = CatalogueKeeper(None, default=tmp_path / "models.toml")

    with capture_logs() as logs:
        catalogue = keeper.load_initial()

    assert (catalogue.generation, len(catalogue.models), len(catalogue.aliases)) == (0, 0, 0)
    assert [entry["event"] for entry in logs] == ["catalogue_warning"]
    assert [warning.message for warning in catalogue.warnings] == ["not there"]


def test_default_file_that_is_there_must_be_good(tmp_path):
    """Somebody put it there for a reason."""
    (tmp_path / "models.toml").write_text(FAULTY)

    with pytest.raises(FaultyFile):
        CatalogueKeeper(None, default=tmp_path / "models.toml").load_initial()


async def test_default_file_that_appears_later_is_applied(tmp_path):
    """Until then its absence is no error."""
    keeper = CatalogueKeeper(None, default=tmp_path / "models.toml")
    keeper.load_initial()
    assert (await keeper.reload()).result == "unchanged"
    assert keeper.last_error is None

    (tmp_path / "models.toml").write_text(SMALL)

    assert (await keeper.reload()).result == "applied"
    (tmp_path / "models.toml").unlink()
    assert (await keeper.reload()).result == "rejected"


# On demand.


async def test_reload_applies_what_is_new(keeper, path):
    """New snapshot, next generation, and what changed."""
    old = keeper.current
    path.write_text(LARGE)

    outcome = await keeper.reload()

    assert outcome.result == "applied"
    assert outcome.catalogue is keeper.current
    assert str(outcome.diff) == "~alias large: small-model -> large-model"
    assert keeper.current.generation == 2
    assert old.aliases["large"].target == "small-model"  # whoever holds it keeps it


async def test_reload_of_the_same_bytes_is_unchanged(keeper, path):
    """Touched is not changed: same snapshot, same generation."""
    before = keeper.current
    rename_over(path, SMALL)

    assert (await keeper.reload()).result == "unchanged"
    assert keeper.current is before
    assert keeper.reloads == {"applied": 0, "unchanged": 1, "rejected": 0}


def directory_in_its_place(path):
    """Unreadable, for root too."""
    path.unlink()
    path.mkdir()


def pipe_in_its_place(path):
    """Whoever opens it waits until somebody writes."""
    path.unlink()
    os.mkfifo(path)


def link_to_itself_in_its_place(path):
    """A slip with `ln -s`."""
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: p.write_text(FAULTY), "another alias"),
        (lambda p: p.write_text('[aliases]\nlarge = "la'), "not TOML"),
        (lambda p: p.write_bytes(b"\x00" * 100), "not TOML"),
        (lambda p: p.write_text(""), "the file is empty"),
        (lambda p: p.write_text("# all gone\n"), "the file is empty"),
        (lambda p: p.unlink(), "No such file"),
        (directory_in_its_place, "not a regular file"),
        (pipe_in_its_place, "not a regular file"),
        (link_to_itself_in_its_place, "symbolic links"),
        (lambda p: p.write_text("#" * (catalogue_store.FILE_LIMIT_BYTES + 1)), "larger than 4 MiB"),
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
async def test_bad_file_keeps_the_last_good_catalogue(keeper, path, spoil, reason):
    """And says why, until it is good again, also if good means the very bytes in force."""
    before = keeper.current
    spoil(path)

    outcome = await keeper.reload()

    assert outcome.result == "rejected"
    assert keeper.current is before is outcome.catalogue
    assert keeper.last_error == outcome.faults
    assert any(reason in fault.message for fault in outcome.faults)

    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    path.write_text(SMALL)
    with capture_logs() as logs:
        assert (await keeper.reload()).result == "unchanged"
    assert keeper.last_error is None
    assert [entry["event"] for entry in logs] == ["catalogue_recovered"]
    assert keeper.current is before


async def test_file_of_another_user_says_whose_permission_is_missing(keeper, path, monkeypatch):
    """`chmod 600` by root is the usual way there; root, who may run this, could read it all the same."""

    def refused(self, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refused)

    [fault] = (await keeper.reload()).faults

    assert fault.message == "cannot be read: Permission denied"
    assert fault.hint == "the user that cortex runs as has to be able to read it"


async def test_good_file_after_a_bad_one_clears_the_error(keeper, path):
    """New content heals as well as the old does."""
    path.write_text(FAULTY)
    await keeper.reload()
    path.write_text(LARGE)

    assert (await keeper.reload()).result == "applied"
    assert keeper.last_error is None


async def test_no_models_on_purpose_is_accepted(keeper, path):
    """The way out that the refusal of an empty file names."""
    path.write_text("models = []")

    assert (await keeper.reload()).result == "applied"
    assert not keeper.current.aliases


async def test_rejection_is_logged_with_every_line_and_key(keeper, path):
    """The log alone must be enough to mend the file."""
    path.write_text('[[models]]\nid = "a"\nmin_device = 1\n')

    with capture_logs() as logs:
        await keeper.reload()

    [entry] = logs
    assert (entry["event"], entry["log_level"], entry["generation_in_force"]) == ("catalogue_rejected", "error", 1)
    assert [(fault["line"], fault["key"]) for fault in entry["faults"]] == [
        (1, "models[0].harness"),
        (3, "models[0].min_device"),
    ]


async def test_concurrent_reloads_each_get_their_answer(keeper, path):
    """One of them brings it in; the others find it there."""
    path.write_text(LARGE)
    outcomes = []

    async def ask():
        outcomes.append((await keeper.reload()).result)

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(ask)

    assert sorted(outcomes) == ["applied"] + ["unchanged"] * 9
    assert keeper.current.generation == 2


async def test_subscribers_hear_of_a_change_once_it_is_in_force(keeper, path):
    """Also those after one that fails; and they hear only of changes."""
    heard = []

    def fail(old, new, changes):
        raise RuntimeError("not my day")

    keeper.subscribe(fail)
    keeper.subscribe(lambda old, new, changes: heard.append((old, new, keeper.current is new, str(changes))))
    old = keeper.current
    await keeper.reload()
    path.write_text(LARGE)

    with capture_logs() as logs:
        outcome = await keeper.reload()

    assert outcome.result == "applied"
    assert heard == [(old, keeper.current, True, "~alias large: small-model -> large-model")]
    assert "catalogue_subscriber_failed" in [entry["event"] for entry in logs]


# By itself.


def in_place(path, text):
    path.write_text(text)


def like_vim(path, text):
    """Old file away, new one written, old one deleted."""
    backup = path.with_name("models.toml~")
    path.rename(backup)
    path.write_text(text)
    backup.unlink()


def delete_and_recreate(path, text):
    path.unlink()
    path.write_text(text)


@pytest.mark.parametrize("replace", [rename_over, in_place, like_vim, delete_and_recreate])
async def test_swap_is_noticed(keeper, path, replace, monkeypatch):
    """However editors do it, and again and again; what is half-written is never believed, however long it takes us."""
    monkeypatch.setattr(catalogue_store, "HALF_WRITTEN_S", POLL_NEVER_S)
    async with watching(keeper):
        for text, expected in [(LARGE, "large-model"), (SMALL, "small-model")] * 4:
            replace(path, text)
            await until(lambda expected=expected: target(keeper) == expected)
        assert keeper.last_error is None
    assert keeper.current.generation == 9
    assert keeper.reloads["rejected"] == 0


@measured
@pytest.mark.parametrize("replace", [rename_over, in_place, like_vim, delete_and_recreate])
async def test_swap_is_in_force_within_100_ms(keeper, path, replace):
    """From the end of the save; in the thread of a process that has other things to do."""
    texts = cycle([(LARGE, "large-model"), (SMALL, "small-model")])

    async def swap():
        text, expected = next(texts)
        replace(path, text)
        saved_at = trio.current_time()
        await until(lambda: target(keeper) == expected)
        return trio.current_time() - saved_at

    async with watching(keeper):
        await best_of(swap, SWAP_S)


async def test_config_map_swap_is_an_event(tmp_path):
    """Kubernetes: the file is a link through `..data`, which is replaced by rename; the file is never touched."""
    for version, text in (("..1", SMALL), ("..2", LARGE)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "models.toml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "models.toml").symlink_to("..data/models.toml")
    keeper = CatalogueKeeper(tmp_path / "models.toml", poll_s=POLL_NEVER_S)
    keeper.load_initial()

    async with watching(keeper):
        (tmp_path / "..data_tmp").symlink_to("..2")
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")
        shutil.rmtree(tmp_path / "..1")

        await until(lambda: target(keeper) == "large-model")

        rename_over(tmp_path / "..2" / "models.toml", SMALL)  # and where the link leads now is watched too
        await until(lambda: target(keeper) == "small-model")


async def test_link_out_of_the_directory_is_followed(tmp_path, path):
    """An edit at the far end counts."""
    link = tmp_path / "models.toml"
    link.symlink_to(path)
    keeper = CatalogueKeeper(link, poll_s=POLL_NEVER_S)
    keeper.load_initial()

    async with watching(keeper):
        rename_over(path, LARGE)
        await until(lambda: target(keeper) == "large-model")


async def test_bad_file_shows_and_clears_by_itself(keeper, path):
    """Without anybody asking; and once each, however often the same fault is seen again."""
    async with watching(keeper):
        rename_over(path, FAULTY)
        await until(lambda: keeper.last_error is not None)
        (path.parent / "unrelated").write_text("x")
        path.unlink()
        await until(lambda: keeper.last_error[0].message.startswith("cannot be read"))
        rename_over(path, SMALL)
        await until(lambda: keeper.last_error is None)

    assert keeper.reloads == {"applied": 0, "unchanged": 1, "rejected": 2}
    assert keeper.current.generation == 1


async def test_fault_is_believed_only_once_it_lasts(keeper, path, monkeypatch):
    """A slow save, emptied first and written later, rings no alarm."""
    monkeypatch.setattr(catalogue_store, "HALF_WRITTEN_S", POLL_NEVER_S)
    examined = []
    examine = keeper._examine
    monkeypatch.setattr(keeper, "_examine", lambda: examined.append(examine()) or examined[-1])
    async with watching(keeper):
        path.write_text("")
        await until(lambda: isinstance(examined[-1], tuple))  # the fault was seen
        path.write_text(LARGE)
        await until(lambda: target(keeper) == "large-model")

    assert keeper.reloads["rejected"] == 0


async def test_fault_shows_although_the_directory_is_never_quiet(keeper, path):
    """Other files' events do not put it off for ever."""
    async with watching(keeper):
        path.write_text(FAULTY)
        with trio.fail_after(SAFETY_NET_S):
            while keeper.last_error is None:
                (path.parent / "noise").write_text("x")
                await trio.sleep(0.01)


async def test_change_before_watching_is_found_when_it_begins(keeper, path):
    """Nothing falls between start and watch."""
    rename_over(path, LARGE)

    async with watching(keeper):
        assert target(keeper) == "large-model"


async def test_replaced_directory_is_found_by_the_poll_and_then_watched(path):
    """Deploy tools swap whole directories; the old one's events mean nothing then."""
    keeper = CatalogueKeeper(path, poll_s=0.1)
    keeper.load_initial()
    async with watching(keeper):
        path.parent.rename(path.parent.with_name("old"))
        path.parent.mkdir()
        path.write_text(LARGE)
        await until(lambda: target(keeper) == "large-model")
        keeper._poll_s = POLL_NEVER_S  # from the next round on

        await trio.sleep(0.2)  # that round has begun
        rename_over(path, SMALL)
        await until(lambda: target(keeper) == "small-model")


async def test_poll_alone_is_enough(path, monkeypatch):
    """No inotify instances left, a file system without events: slower, and said once."""

    def refuse(*_):
        raise OSError(24, "inotify instances exhausted")

    monkeypatch.setattr(catalogue_store, "RustNotify", refuse)
    keeper = CatalogueKeeper(path, poll_s=0.05)
    keeper.load_initial()
    with capture_logs() as logs:
        async with watching(keeper):
            rename_over(path, LARGE)
            await until(lambda: target(keeper) == "large-model")
            rename_over(path, SMALL)
            await until(lambda: target(keeper) == "small-model")
    assert [entry["event"] for entry in logs].count("catalogue_events_unavailable") == 1


async def test_same_fault_is_told_once(path, monkeypatch):
    """The poll sees it every time; the log and the counter hear of it once."""
    keeper = CatalogueKeeper(path, poll_s=0.02)
    keeper.load_initial()
    path.write_text(FAULTY)
    polls = []
    examine = keeper._examine
    monkeypatch.setattr(keeper, "_examine", lambda: polls.append(1) or examine())
    with capture_logs() as logs:
        async with watching(keeper):
            await until(lambda: len(polls) > 5)

    assert keeper.reloads["rejected"] == 1
    assert [entry["event"] for entry in logs] == ["catalogue_rejected"]


@measured
async def test_watch_ends_within_a_second(keeper):
    """With its thread in the middle of a wait for the next event."""

    async def watch_and_stop():
        async with trio.open_nursery() as nursery:
            await nursery.start(keeper.watch)
            await trio.sleep(0.05)
            stopped_at = trio.current_time()
            nursery.cancel_scope.cancel()
        return trio.current_time() - stopped_at

    await best_of(watch_and_stop, 1)


async def test_watching_leaves_no_descriptor_behind(keeper, path):
    """Also when the directory was replaced on the way."""

    async def watch_for_a_while():
        async with watching(keeper):
            rename_over(path, LARGE)
            await until(lambda: target(keeper) == "large-model")
            rename_over(path, SMALL)
            await until(lambda: target(keeper) == "small-model")

    await watch_for_a_while()
    before = open_descriptors()
    for _ in range(3):
        await watch_for_a_while()

    await until(lambda: open_descriptors() <= before)


async def test_own_reading_is_no_event(keeper, monkeypatch):
    """Or it would look, and look, and look."""
    looks = []
    examine = keeper._examine
    monkeypatch.setattr(keeper, "_examine", lambda: looks.append(1) or examine())
    async with watching(keeper):
        await trio.sleep(0.3)

    assert len(looks) <= 2
