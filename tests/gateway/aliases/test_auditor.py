"""gateway.aliases.auditor: what came into force, what was refused, and who brought it."""

import errno
from pathlib import Path

import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S, until
from structlog.testing import capture_logs

from gateway.aliases import auditor as auditing
from gateway.aliases.auditor import Auditor, acting
from gateway.aliases.catalogue_store import CatalogueKeeper
from gateway.aliases.files.audit_log import Trail
from gateway.aliases.files.file_history import Announcement, digest_of
from gateway.aliases.files.paths import Records
from gateway.config.settings import AuditSettings, Settings

A = b'[aliases]\ntier = "A"\n'
B = b'[aliases]\ntier = "B"\n'
BROKEN = b"[aliases]\ntier = 7\n"


class AliasCommands:
    """A keeper, an auditor, and the file that both are about."""

    def __init__(self, folder, *, readiness=None, **how):
        self.models = folder / "models.toml"
        if not self.models.exists():
            self.models.write_bytes(A)
        self.records = Records.of(Settings(models_config=self.models, audit=AuditSettings()))
        self.keeper = CatalogueKeeper(self.models, readiness=readiness)
        self.keeper.load_initial()
        self.auditor = Auditor(self.records, self.keeper, **how)

    async def edit(self, data, who=None):
        self.models.write_bytes(data)
        if who is None:
            return await self.keeper.reload()
        with acting(who):
            return await self.keeper.reload()

    async def written(self):
        """All lines, once nothing waits."""
        await until(lambda: not self.auditor.status()["pending"])
        return self.lines()

    def lines(self):
        return [line.said for line in self.records.trail.newest_first()][::-1]


@pytest.fixture
async def desk(tmp_path, nursery):
    desk = AliasCommands(tmp_path)
    await nursery.start(desk.auditor.run)
    await desk.written()
    yield desk
    structlog.reset_defaults()


def brief(lines, *keys):
    return [tuple(line.get(key) for key in keys) for line in lines]


async def test_start_is_the_first_line(desk):
    """With the file that is in force, which is kept."""
    assert brief(desk.lines(), "seq", "event", "generation", "who", "file") == [
        (1, "started", 1, "cortex", digest_of(A))
    ]
    assert desk.records.history.get(digest_of(A)) == A


async def test_edit_is_a_line_with_its_difference(desk):
    """Who edited a file cannot be seen: the file is named."""
    await desk.edit(B)

    line = (await desk.written())[-1]
    assert brief([line], "event", "generation", "who", "file", "before", "summary", "outcome") == [
        ("applied", 2, "file", digest_of(B), digest_of(A), "~alias tier: A -> B", "in force")
    ]
    assert line["diff"]["aliases_changed"][0]["name"] == "tier"
    assert desk.records.history.get(digest_of(B)) == B


async def test_move_of_an_alias_that_was_warming_is_a_line_of_its_own(tmp_path, nursery):
    """Nobody brought a file: it is the gateway's own doing, under the same file."""
    desk = AliasCommands(tmp_path, readiness=ServableAndUnproven())
    await nursery.start(desk.auditor.run)
    await desk.edit(B, who="anna")
    desk.keeper.give_up("tier", "it does not answer")
    desk.keeper.try_again("tier")
    desk.keeper.move("tier")

    assert brief(await desk.written(), "event", "who", "generation", "outcome") == [
        ("started", "cortex", 1, "in force"),
        ("applied", "anna", 2, "in force, but for aliases that are warming"),
        ("swap_failed", "cortex", 2, "not moved"),
        ("warming", "cortex", 2, "warming again"),
        ("moved", "cortex", 3, "in force"),
    ]
    assert {line["file"] for line in desk.lines()[1:]} == {digest_of(B)}
    structlog.reset_defaults()


class ServableAndUnproven:
    """Every model could be asked, and none has answered: so every change has to be warmed."""

    def is_servable(self, model, catalogue):
        return True

    def is_proven(self, model, catalogue):
        return False


async def test_whoever_makes_the_keeper_look_is_named(desk):
    """The admin API says who it acts for; the next edit is nobody's again."""
    await desk.edit(B, who="admin")
    await desk.edit(A)

    assert brief(await desk.written(), "who") == [("cortex",), ("admin",), ("file",)]


async def test_whoever_announced_the_file_is_named_with_the_command(desk):
    """Once: the same file brought by somebody else later is theirs."""
    announcement = Announcement(who="anna", command="cortex alias set tier B", before=digest_of(A), at=0)
    desk.records.history.announce(digest_of(B), announcement)
    await desk.edit(B)
    await desk.written()
    await desk.edit(A)
    await desk.edit(B)

    assert brief(await desk.written(), "who", "command") == [
        ("cortex", None),
        ("anna", "cortex alias set tier B"),
        ("file", None),
        ("file", None),
    ]


async def test_refused_file_is_a_line_with_its_faults(desk):
    """And which generation stays in force; asked again for the same file, nothing new is said."""
    await desk.edit(BROKEN)
    await desk.edit(BROKEN)

    lines = await desk.written()
    assert len(lines) == 2
    assert brief(lines[1:], "event", "generation", "file", "before", "outcome") == [
        ("rejected", 1, digest_of(BROKEN), digest_of(A), "refused; generation 1 stays in force")
    ]
    assert lines[1]["faults"][0]["line"] == 2


async def test_file_that_is_mended_is_a_line_with_who_mended_it(desk):
    """Nothing new is in force; that the file on disk is what is, is news."""
    await desk.edit(BROKEN)
    announcement = Announcement(who="anna", command="cortex alias rollback", before=digest_of(BROKEN), at=0)
    desk.records.history.announce(digest_of(A), announcement)
    await desk.edit(A)
    await desk.edit(A)

    assert brief(await desk.written(), "event", "generation", "who", "file")[1:] == [
        ("rejected", 1, "file", digest_of(BROKEN)),
        ("recovered", 1, "anna", digest_of(A)),
    ]
    assert desk.records.history.announced(digest_of(A)) is None


async def test_same_refused_file_after_a_good_one_is_news(desk):
    """It was tried again."""
    for data in (BROKEN, B, BROKEN):
        await desk.edit(data)

    assert brief(await desk.written(), "event")[1:] == [("rejected",), ("applied",), ("rejected",)]


async def test_plan_is_part_of_the_line(tmp_path, nursery):
    """What the change took; a plan that goes wrong costs the trail nothing."""
    desk = AliasCommands(tmp_path, plan=lambda old, new: {"from": old.generation, "to": 1 / (new.generation - 3)})
    await nursery.start(desk.auditor.run)
    await desk.edit(B)
    with capture_logs() as logs:
        await desk.edit(A)

    assert brief(await desk.written(), "plan")[1:] == [({"from": 1, "to": -1.0},), (None,)]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["plan_failed"]


async def test_change_of_very_many_aliases_is_not_planned(tmp_path, nursery):
    """The loop has better things to do than to forecast them all."""
    desk = AliasCommands(tmp_path, plan=lambda *_: {"made": True})
    await nursery.start(desk.auditor.run)
    await desk.edit(A + b"".join(b'a%d = "A"\n' % number for number in range(20)))
    await desk.edit(A + b"".join(b'b%d = "A"\n' % number for number in range(21)))

    assert brief(await desk.written(), "plan")[1:] == [({"made": True},), (None,)]


async def test_edit_while_no_gateway_ran_is_found_at_the_next_start(tmp_path, nursery):
    """By the hash: generations begin again with the process, the numbers of the lines do not."""
    first = AliasCommands(tmp_path)
    with trio.CancelScope() as life:
        async with trio.open_nursery() as inner:
            await inner.start(first.auditor.run)
            await first.written()
            life.cancel()
    (tmp_path / "models.toml").write_bytes(B)

    second = AliasCommands(tmp_path)
    await nursery.start(second.auditor.run)

    line = (await second.written())[-1]
    assert brief([line], "seq", "event", "generation", "who", "before") == [(2, "started", 1, "file", digest_of(A))]
    assert line["summary"].endswith("edited while none was running: ~alias tier: A -> B")


async def test_last_lines_are_written_before_the_end(tmp_path, monkeypatch):
    """What was heard in the last moment, too, and once."""
    monkeypatch.setattr(auditing, "LAST_WORDS_S", SAFETY_NET_S)
    desk = AliasCommands(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(desk.auditor.run)
        for data in (B, A, B):
            await desk.edit(data)
        nursery.cancel_scope.cancel()

    assert brief(desk.lines(), "event") == [("started",), ("applied",), ("applied",), ("applied",)]
    assert desk.records.trail.verify().broken is None


async def test_thread_that_begins_late_does_not_write_again(tmp_path, monkeypatch):
    """The one that was cancelled before it began comes to a line that is written."""
    desk = AliasCommands(tmp_path)
    entry = auditing._Entry({"event": "applied", "file": None})
    first = desk.auditor._write(entry, 0)

    assert first is not None
    assert desk.auditor._write(entry, 0) is None
    assert brief(desk.lines(), "event") == [("applied",)]


# Disks.


class FullDisk:
    """No line can be written until somebody makes room."""

    def __init__(self, monkeypatch):
        self.is_full = True

        def append(trail, said):
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device", str(trail.path))
            return as_it_is(trail, said)

        as_it_is = Trail.append
        monkeypatch.setattr(Trail, "append", append)


async def test_full_disk_loses_no_swap_and_no_line(desk, monkeypatch):
    """Swaps go on, the lines wait, health says why, and they are written when there is room."""
    monkeypatch.setattr(auditing, "RETRY_S", 0.01)
    disk = FullDisk(monkeypatch)
    with capture_logs() as logs:
        for data in (B, A, B):
            assert (await desk.edit(data)).result == "applied"
        await until(lambda: desk.auditor.status()["error"])
        status = desk.auditor.status()
        disk.is_full = False
        lines = await desk.written()

    assert status["error"] == f"{desk.records.trail.path}: No space left on device"
    assert (status["pending"], status["lost"]) == (3, 0)
    assert brief(lines, "generation") == [(1,), (2,), (3,), (4,)]
    assert desk.auditor.status()["error"] is None
    told = [entry["event"] for entry in logs if entry["event"].startswith("audit_")]
    assert told == ["audit_failed", "audit_recovered"]


async def test_disk_that_stays_full_takes_no_more_than_its_share_of_memory(desk, monkeypatch):
    """The oldest lines go, and the next that is written says how many they were."""
    monkeypatch.setattr(auditing, "RETRY_S", 0.01)
    monkeypatch.setattr(auditing, "PENDING_LIMIT", 2)
    disk = FullDisk(monkeypatch)
    for data in (B, A, B, A, B):
        await desk.edit(data)
    assert desk.auditor.status()["pending"] == 2
    assert desk.auditor.status()["lost"] == 3

    disk.is_full = False

    lines = await desk.written()
    assert lines[-1]["generation"] == 6
    assert len(lines) + sum(line.get("lost", 0) for line in lines) == 6  # one may have been on its way when it was lost
    assert sum(line.get("lost", 0) for line in lines) >= 2
    assert desk.auditor.status()["lost"] == 0


async def test_files_that_wait_are_bounded_in_bytes(desk, monkeypatch):
    """A line without its file is better than none."""
    monkeypatch.setattr(auditing, "PENDING_LIMIT_BYTES", 10)
    monkeypatch.setattr(auditing, "RETRY_S", 0.01)
    disk = FullDisk(monkeypatch)
    comment = b"# a comment\n"
    await desk.edit(B)
    await desk.edit(B + comment)
    disk.is_full = False
    await desk.written()

    assert desk.records.history.get(digest_of(B)) == B
    assert desk.records.history.get(digest_of(B + comment)) is None


async def test_history_that_cannot_be_kept_is_said_in_the_line(desk, monkeypatch):
    """The trail goes on without it."""

    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied", "models.history")

    monkeypatch.setattr(desk.records.history, "keep", refuse)
    await desk.edit(B)

    assert "Permission denied" in (await desk.written())[-1]["not_kept"]


async def test_directory_that_cannot_be_written_keeps_nobody_from_serving(tmp_path, nursery):
    """A read-only volume: started, and said."""
    desk = AliasCommands(tmp_path)
    desk.records.trail.path = Path("/proc/nowhere/models.audit.jsonl")
    with capture_logs() as logs:
        await nursery.start(desk.auditor.run)
        await until(lambda: desk.auditor.status()["error"])

    assert "audit_failed" in [entry["event"] for entry in logs]
    assert (await desk.edit(B)).result == "applied"


async def test_line_of_a_huge_change_is_shortened(desk, monkeypatch):
    """A thousand profiles at once: the summary's beginning, and the files by their hashes."""
    monkeypatch.setattr(auditing, "LINE_LIMIT_BYTES", 4000)
    many = b"".join(b'[[models]]\nid = "m%d"\nharness = "x"\n' % number for number in range(500))
    await desk.edit(B + many)

    line = (await desk.written())[-1]
    assert line["shortened"] is True
    assert "diff" not in line
    assert len(line["summary"]) <= auditing.SUMMARY_LIMIT


async def test_gateway_without_a_file_writes_nothing(tmp_path, nursery):
    """Nothing is in force that could be recorded."""
    keeper = CatalogueKeeper(None, default=tmp_path / "models.toml")
    keeper.load_initial()
    records = Records.of(Settings(models_config=tmp_path / "models.toml"))
    await nursery.start(Auditor(records, keeper).run)
    await trio.testing.wait_all_tasks_blocked(0.05)

    assert list(tmp_path.iterdir()) == []
