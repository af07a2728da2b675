"""gateway.aliases.auditor: the audit log records what came into force, what was rejected, and who caused it."""

import errno
import threading
from pathlib import Path

import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S, until
from structlog.testing import capture_logs

from gateway.aliases import audit_queue
from gateway.aliases.audit_queue import AuditEntry, AuditQueue
from gateway.aliases.auditor import Auditor
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.files import audit_entry
from gateway.aliases.files.audit_log import AuditLog
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.file_history import Announcement, digest_of
from gateway.config.settings import AuditSettings, Settings

A = b'[aliases]\ntier = "A"\n'
B = b'[aliases]\ntier = "B"\n'
BROKEN = b"[aliases]\ntier = 7\n"


class AuditedStore:
    """A catalogue store and its auditor on a real directory."""

    def __init__(self, folder, *, readiness=None, **options):
        self.models_path = folder / "models.toml"
        if not self.models_path.exists():
            self.models_path.write_bytes(A)
        self.files = CatalogueFiles.from_settings(Settings(models_config=self.models_path, audit=AuditSettings()))
        self.store = CatalogueStore(self.models_path, readiness=readiness)
        self.store.load_initial()
        self.auditor = Auditor(self.files, self.store, **options)

    async def edit(self, data, **actor):
        self.models_path.write_bytes(data)
        return await self.store.reload(**actor)

    async def written(self):
        """All lines, once none is pending."""
        await until(lambda: not self.auditor.status()["pending"])
        return self.lines()

    def lines(self):
        return [line.fields for line in self.files.audit_log.newest_first()][::-1]


@pytest.fixture
async def audited(tmp_path, nursery):
    audited = AuditedStore(tmp_path)
    await nursery.start(audited.auditor.run)
    await audited.written()
    yield audited
    structlog.reset_defaults()


def columns(lines, *keys):
    return [tuple(line.get(key) for key in keys) for line in lines]


async def test_start_is_the_first_line(audited):
    """It names the file in force, and the history has that file."""
    assert columns(audited.lines(), "seq", "event", "generation", "who", "file") == [
        (1, "started", 1, "cortex", digest_of(A))
    ]
    assert audited.files.history.get(digest_of(A)) == A


async def test_edit_is_a_line_with_its_diff(audited):
    """The author of an edit is unknown, so `who` is "file"."""
    await audited.edit(B)

    line = (await audited.written())[-1]
    assert columns([line], "event", "generation", "who", "file", "before", "summary", "outcome") == [
        ("applied", 2, "file", digest_of(B), digest_of(A), "~alias tier: A -> B", "in force")
    ]
    assert line["diff"]["aliases_changed"][0]["name"] == "tier"
    assert audited.files.history.get(digest_of(B)) == B


async def test_move_of_a_warming_alias_is_a_line_of_its_own(tmp_path, nursery):
    """The gateway itself is the actor, and the file is the same."""
    audited = AuditedStore(tmp_path, readiness=ServableAndUnproven())
    await nursery.start(audited.auditor.run)
    await audited.edit(B, actor="anna")
    audited.store.give_up("tier", "it does not answer")
    audited.store.try_again("tier")
    audited.store.move("tier")

    assert columns(await audited.written(), "event", "who", "generation", "outcome") == [
        ("started", "cortex", 1, "in force"),
        ("applied", "anna", 2, "in force, except aliases that are warming"),
        ("swap_failed", "cortex", 2, "not moved"),
        ("warming", "cortex", 2, "warming again"),
        ("moved", "cortex", 3, "in force"),
    ]
    assert {line["file"] for line in audited.lines()[1:]} == {digest_of(B)}
    structlog.reset_defaults()


class ServableAndUnproven:
    """Every model can serve and none has answered yet, so every new target must be warmed."""

    def is_servable(self, model, catalogue):
        return True

    def is_proven(self, model, catalogue):
        return False


async def test_actor_of_a_reload_is_recorded(audited):
    """The admin API names its actor; the next edit of the file is again by "file"."""
    await audited.edit(B, actor="admin")
    await audited.edit(A)

    assert columns(await audited.written(), "who") == [("cortex",), ("admin",), ("file",)]


async def test_announced_author_is_recorded_with_the_command(audited):
    """Once: a later edit that brings the same file is not attributed to that author."""
    announcement = Announcement(who="anna", command="cortex alias set tier B", before=digest_of(A), at=0)
    audited.files.history.announce(digest_of(B), announcement)
    await audited.edit(B)
    await audited.written()
    await audited.edit(A)
    await audited.edit(B)

    assert columns(await audited.written(), "who", "command") == [
        ("cortex", None),
        ("anna", "cortex alias set tier B"),
        ("file", None),
        ("file", None),
    ]


async def test_rejected_file_is_a_line_with_its_faults(audited):
    """It names the generation that stays in force; reading the same file again adds no line."""
    await audited.edit(BROKEN)
    await audited.edit(BROKEN)

    lines = await audited.written()
    assert len(lines) == 2
    assert columns(lines[1:], "event", "generation", "file", "before", "outcome") == [
        ("rejected", 1, digest_of(BROKEN), digest_of(A), "refused; generation 1 stays in force")
    ]
    assert lines[1]["faults"][0]["line"] == 2


async def test_repaired_file_is_a_line_with_its_author(audited):
    """The file in force is back on disk: one line, although the generation is the same."""
    await audited.edit(BROKEN)
    announcement = Announcement(who="anna", command="cortex alias rollback", before=digest_of(BROKEN), at=0)
    audited.files.history.announce(digest_of(A), announcement)
    await audited.edit(A)
    await audited.edit(A)

    assert columns(await audited.written(), "event", "generation", "who", "file")[1:] == [
        ("rejected", 1, "file", digest_of(BROKEN)),
        ("recovered", 1, "anna", digest_of(A)),
    ]
    assert audited.files.history.announcement_of(digest_of(A)) is None


async def test_same_rejected_file_after_a_good_one_is_a_new_line(audited):
    """A repeated mistake is a second event."""
    for data in (BROKEN, B, BROKEN):
        await audited.edit(data)

    assert columns(await audited.written(), "event")[1:] == [("rejected",), ("applied",), ("rejected",)]


async def test_plan_is_part_of_the_line(tmp_path, nursery):
    """A plan that raises is logged, and the line is written without it."""
    audited = AuditedStore(tmp_path, plan=lambda old, new: {"from": old.generation, "to": 1 / (new.generation - 3)})
    await nursery.start(audited.auditor.run)
    await audited.edit(B)
    with capture_logs() as logs:
        await audited.edit(A)

    assert columns(await audited.written(), "plan")[1:] == [({"from": 1, "to": -1.0},), (None,)]
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["plan_failed"]


async def test_change_of_very_many_aliases_is_not_planned(tmp_path, nursery):
    """Planning them all would block the event loop."""
    audited = AuditedStore(tmp_path, plan=lambda *_: {"made": True})
    await nursery.start(audited.auditor.run)
    await audited.edit(A + b"".join(b'a%d = "A"\n' % number for number in range(20)))
    await audited.edit(A + b"".join(b'b%d = "A"\n' % number for number in range(21)))

    assert columns(await audited.written(), "plan")[1:] == [({"made": True},), (None,)]


async def test_edit_while_no_gateway_ran_is_recorded_at_the_next_start(tmp_path, nursery):
    """It is found by the file's hash: generations start again with the process, line numbers do not."""
    first = AuditedStore(tmp_path)
    with trio.CancelScope() as life:
        async with trio.open_nursery() as inner:
            await inner.start(first.auditor.run)
            await first.written()
            life.cancel()
    (tmp_path / "models.toml").write_bytes(B)

    second = AuditedStore(tmp_path)
    await nursery.start(second.auditor.run)

    line = (await second.written())[-1]
    assert columns([line], "seq", "event", "generation", "who", "before") == [(2, "started", 1, "file", digest_of(A))]
    assert line["summary"].endswith("edited while none was running: ~alias tier: A -> B")


async def test_pending_lines_are_written_when_the_task_is_cancelled(tmp_path, monkeypatch):
    """Each of them once."""
    monkeypatch.setattr(audit_queue, "FINAL_WRITE_S", SAFETY_NET_S)
    audited = AuditedStore(tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(audited.auditor.run)
        for data in (B, A, B):
            await audited.edit(data)
        nursery.cancel_scope.cancel()

    assert columns(audited.lines(), "event") == [("started",), ("applied",), ("applied",), ("applied",)]
    assert audited.files.audit_log.verify().broken is None


async def test_abandoned_thread_does_not_write_an_entry_again(tmp_path):
    """The thread of a cancelled task may run late; the entry is written already."""
    audited = AuditedStore(tmp_path)
    queue = AuditQueue(audited.files)
    entry = AuditEntry({"event": "applied", "file": None})
    first = queue._write(entry, 0)

    assert first is not None
    assert queue._write(entry, 0) is None
    assert columns(audited.lines(), "event") == [("applied",)]


# Disks.


class FullDisk:
    """No line can be written while `is_full`."""

    def __init__(self, monkeypatch):
        self.is_full = True

        def append(audit_log, fields, **known):
            if self.is_full:
                raise OSError(errno.ENOSPC, "No space left on device", str(audit_log.path))
            return original(audit_log, fields, **known)

        original = AuditLog.append
        monkeypatch.setattr(AuditLog, "append", append)


async def test_full_disk_delays_no_swap_and_loses_no_line(audited, monkeypatch):
    """Swaps go on, `/health` has the reason, and the lines are written once there is space."""
    monkeypatch.setattr(audit_queue, "RETRY_S", 0.01)
    disk = FullDisk(monkeypatch)
    with capture_logs() as logs:
        for data in (B, A, B):
            assert (await audited.edit(data)).result == "applied"
        await until(lambda: audited.auditor.status()["error"])
        status = audited.auditor.status()
        disk.is_full = False
        lines = await audited.written()

    assert status["error"] == f"{audited.files.audit_log.path}: No space left on device"
    assert (status["pending"], status["lost"]) == (3, 0)
    assert columns(lines, "generation") == [(1,), (2,), (3,), (4,)]
    assert audited.auditor.status()["error"] is None
    events = [entry["event"] for entry in logs if entry["event"].startswith("audit_")]
    assert events == ["audit_failed", "audit_recovered"]


async def test_pending_lines_are_bounded(audited, monkeypatch):
    """The oldest are dropped, and the next line that is written counts them."""
    monkeypatch.setattr(audit_queue, "RETRY_S", 0.01)
    monkeypatch.setattr(audit_queue, "PENDING_LIMIT", 2)
    disk = FullDisk(monkeypatch)
    for data in (B, A, B, A, B):
        await audited.edit(data)
    assert audited.auditor.status()["pending"] == 2
    assert audited.auditor.status()["lost"] == 3

    disk.is_full = False

    lines = await audited.written()
    assert lines[-1]["generation"] == 6
    # A line may be dropped while a thread writes it.
    assert len(lines) + sum(line.get("lost", 0) for line in lines) == 6
    assert sum(line.get("lost", 0) for line in lines) >= 2
    assert audited.auditor.status()["lost"] == 0


async def test_pending_files_are_bounded_in_bytes(audited, monkeypatch):
    """A line without its file is better than no line."""
    monkeypatch.setattr(audit_queue, "PENDING_LIMIT_BYTES", 10)
    monkeypatch.setattr(audit_queue, "RETRY_S", 0.01)
    disk = FullDisk(monkeypatch)
    comment = b"# a comment\n"
    await audited.edit(B)
    await audited.edit(B + comment)
    disk.is_full = False
    await audited.written()

    assert audited.files.history.get(digest_of(B)) == B
    assert audited.files.history.get(digest_of(B + comment)) is None


async def test_file_that_cannot_be_kept_is_noted_in_the_line(audited, monkeypatch):
    """The line is written with `not_kept`."""

    def refuse(*_):
        raise OSError(errno.EACCES, "Permission denied", "models.history")

    monkeypatch.setattr(audited.files.history, "keep", refuse)
    await audited.edit(B)

    assert "Permission denied" in (await audited.written())[-1]["not_kept"]


async def test_history_that_cannot_be_written_is_reported_until_it_can(audited, monkeypatch):
    """Once in the log, not at every try; and the file is kept later, without another change."""
    monkeypatch.setattr(audit_queue, "RETRY_S", 0.01)
    original, is_writable = audited.files.history.keep, False

    def keep(data):
        if not is_writable:
            raise OSError(errno.EACCES, "Permission denied", "models.history")
        return original(data)

    monkeypatch.setattr(audited.files.history, "keep", keep)
    with capture_logs() as logs:
        await audited.edit(B)
        await until(lambda: audited.auditor.status()["history_error"])
        await trio.sleep(0.05)
        reason = audited.auditor.status()["history_error"]
        is_writable = True
        await until(lambda: audited.auditor.status()["history_error"] is None)

    assert reason == "models.history: Permission denied"
    assert audited.files.history.get(digest_of(B)) == B
    events = [entry["event"] for entry in logs if entry["event"].startswith("history_")]
    assert events == ["history_failed", "history_recovered"]
    assert not any("exc_info" in entry for entry in logs)


async def test_write_that_never_returns_is_reported(audited, monkeypatch):
    """A hung mount: `/health` says so although no error was raised."""
    monkeypatch.setattr(audit_queue, "SLOW_WRITE_S", 0.05)
    may_write = threading.Event()
    original = AuditLog.append

    def append(*arguments, **known):
        may_write.wait()
        return original(*arguments, **known)

    monkeypatch.setattr(AuditLog, "append", append)
    await audited.edit(B)
    await until(lambda: audited.auditor.status()["error"])
    assert "does not answer" in audited.auditor.status()["error"]
    may_write.set()
    await audited.written()
    assert audited.auditor.status()["error"] is None


async def test_log_emptied_while_the_gateway_runs_is_found_broken(audited):
    """The gateway remembers its last line, so the next one shows the gap, even without the head file."""
    await audited.edit(B)
    await audited.written()
    audited.files.audit_log.path.write_bytes(b"")
    audited.files.audit_log.head_path.unlink()
    await audited.edit(A)

    assert (await audited.written())[-1]["seq"] == 3
    assert audited.files.audit_log.verify().broken is not None


async def test_action_of_an_operator_is_a_line(audited):
    """With its own fields, and the catalogue that was in force."""
    audited.auditor.record_action("drain", "anna", summary="drain beast", outcome="draining", node="beast")

    line = (await audited.written())[-1]
    assert columns([line], "event", "who", "summary", "outcome", "node", "file", "generation") == [
        ("drain", "anna", "drain beast", "draining", "beast", digest_of(A), 1)
    ]
    assert audited.files.audit_log.verify().broken is None


async def test_unwritable_directory_does_not_keep_the_gateway_from_serving(tmp_path, nursery):
    """On a read-only volume the auditor starts and logs the error."""
    audited = AuditedStore(tmp_path)
    audited.files.audit_log.path = Path("/proc/nowhere/models.audit.jsonl")
    with capture_logs() as logs:
        await nursery.start(audited.auditor.run)
        await until(lambda: audited.auditor.status()["error"])

    assert "audit_failed" in [entry["event"] for entry in logs]
    assert (await audited.edit(B)).result == "applied"


async def test_line_of_a_huge_change_is_shortened(audited, monkeypatch):
    """With a thousand new profiles it has the beginning of the summary, and the hashes of both files."""
    monkeypatch.setattr(audit_entry, "LINE_LIMIT_BYTES", 4000)
    many = b"".join(b'[[models]]\nid = "m%d"\nharness = "x"\n' % number for number in range(500))
    await audited.edit(B + many)

    line = (await audited.written())[-1]
    assert line["shortened"] is True
    assert "diff" not in line
    assert len(line["summary"]) <= audit_entry.SUMMARY_LIMIT


async def test_gateway_without_a_file_writes_nothing(tmp_path, nursery):
    """There is no catalogue to record."""
    store = CatalogueStore(None, default=tmp_path / "models.toml")
    store.load_initial()
    files = CatalogueFiles.from_settings(Settings(models_config=tmp_path / "models.toml"))
    await nursery.start(Auditor(files, store).run)
    await trio.testing.wait_all_tasks_blocked(0.05)

    assert list(tmp_path.iterdir()) == []
