"""Where state files are, and how those of an earlier version get there."""

from pathlib import Path

import pytest
import structlog
from structlog.testing import capture_logs

from gateway.aliases.files.catalogue_files import CatalogueFiles, state_directory
from gateway.aliases.files.state_move import move_state_once
from gateway.config.settings import AuditSettings, Settings, StateSettings
from gateway.files import state_directory as system_directory


@pytest.mark.parametrize(
    ("models", "state", "expected"),
    [
        ("/srv/cortex/models.toml", None, "/srv/cortex"),
        ("/etc/cortex/models.toml", None, "/var/lib/cortex"),
        ("/etc/models.toml", None, "/var/lib/cortex"),
        (None, None, "/var/lib/cortex"),
        ("/etcetera/models.toml", None, "/etcetera"),
        ("/etc/cortex/models.toml", "/data", "/data"),
        ("/srv/cortex/models.toml", "/data", "/data"),
    ],
)
def test_state_directory(monkeypatch, models, state, expected):
    """Beside models.toml, unless that is where configuration is, which a service cannot write."""
    monkeypatch.setattr(system_directory, "SYSTEM_DIRECTORY", Path("/var/lib/cortex"))
    settings = Settings(models_config=models and Path(models), state=StateSettings(state and Path(state)))
    assert state_directory(settings) == Path(expected)


class Places:
    """An old directory with files of an earlier version, and a state directory."""

    def __init__(self, folder):
        self.old, self.new = folder / "old", folder / "new" / "state"
        self.old.mkdir()
        self.settings = Settings(models_config=self.old / "models.toml", state=StateSettings(self.new))
        self.files = CatalogueFiles.from_settings(self.settings)
        before = CatalogueFiles.from_settings(Settings(models_config=self.old / "models.toml"))
        for number in range(3):
            before.audit_log.append({"event": f"line {number}"})
        before.audit_log.path.rename(before.audit_log.path.with_name("models.audit.jsonl.000000003"))
        before.audit_log.append({"event": "line 3"})
        self.digest = before.history.keep(b"[aliases]\n")
        before.rollouts_path.write_text('{"rollouts": {}, "version": 1}')


@pytest.fixture
def places(tmp_path):
    yield Places(tmp_path)
    structlog.reset_defaults()


def test_files_move_once(places):
    """With rotated files, head and history; each move is logged; what is there later stays."""
    with capture_logs() as logs:
        move_state_once(places.files)
    assert sorted(path.name for path in places.new.iterdir()) == [
        "models.audit.jsonl",
        "models.audit.jsonl.000000003",
        "models.audit.jsonl.head",
        "models.history",
        "models.rollouts.json",
    ]
    assert list(places.old.iterdir()) == []
    assert {(entry["event"], entry["how"]) for entry in logs} == {("state_moved", "moved")}
    assert (places.files.audit_log.verify().lines, places.files.audit_log.verify().broken) == (4, None)
    assert places.files.history.get(places.digest) == b"[aliases]\n"

    (places.old / "models.audit.jsonl").write_text("of somebody else")
    with capture_logs() as logs:
        move_state_once(places.files)
    assert logs == []
    assert places.files.audit_log.verify().lines == 4


def test_files_that_cannot_be_removed_are_copied(places, monkeypatch):
    """The directory of models.toml may be read-only for the service."""

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    rename = Path.rename
    monkeypatch.setattr(Path, "rename", lambda old, new: refuse() if old.parent == places.old else rename(old, new))
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("shutil.rmtree", refuse)
    with capture_logs() as logs:
        move_state_once(places.files)
    assert {entry["how"] for entry in logs} == {"copied"}
    assert places.files.audit_log.verify().lines == 4
    assert places.files.history.get(places.digest) == b"[aliases]\n"


def test_state_directory_that_cannot_be_made_is_logged(places, monkeypatch):
    """And the gateway starts."""
    files = CatalogueFiles.from_settings(
        Settings(models_config=places.old / "models.toml", state=StateSettings(Path("/proc/nowhere")))
    )
    with capture_logs() as logs:
        move_state_once(files)
    assert {entry["event"] for entry in logs} == {"state_not_moved"}


def test_paths_that_the_operator_set_are_left_alone(places, tmp_path):
    """Only relative paths begin in the state directory."""
    elsewhere = tmp_path / "audit.jsonl"
    settings = Settings(
        models_config=places.old / "models.toml",
        state=StateSettings(places.new),
        audit=AuditSettings(path=str(elsewhere)),
    )
    move_state_once(CatalogueFiles.from_settings(settings))
    assert not elsewhere.exists()
    assert (places.old / "models.audit.jsonl").exists()
    assert (places.new / "models.rollouts.json").exists()


def test_without_a_state_directory_nothing_moves(places):
    move_state_once(CatalogueFiles.from_settings(Settings(models_config=places.old / "models.toml")))
    assert (places.old / "models.audit.jsonl").exists()
