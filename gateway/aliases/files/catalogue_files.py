"""Where `models.toml` and the files about it are: audit log, history, rollouts, drains, as `[state]` and `[audit]` set.

No I/O. `state_move.py` moves files that an earlier version kept elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gateway.aliases.files.audit_log import AuditLog
from gateway.aliases.files.file_history import FileHistory
from gateway.config.settings import DEFAULT_MODELS_CONFIG, Settings
from gateway.files.state_directory import default_directory

__all__ = ["CatalogueFiles", "state_directory"]

_MB = 1024**2


@dataclass(frozen=True, slots=True)
class CatalogueFiles:
    """One `models.toml`, and the files of cortex: in the state directory, unless the operator set other paths."""

    models_path: Path
    state_dir: Path
    audit_log: AuditLog
    history: FileHistory
    rollouts_path: Path
    drains_path: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Relative paths in `[audit]` begin in the state directory."""
        models_path = settings.models_config or DEFAULT_MODELS_CONFIG
        directory, audit = state_directory(settings), settings.audit
        return cls(
            models_path,
            directory,
            AuditLog(
                directory / audit.path, rotate_bytes=int(audit.rotate_mb * _MB), rotated_files=audit.rotated_files
            ),
            FileHistory(directory / audit.history, files=audit.history_files, total_bytes=int(audit.history_mb * _MB)),
            directory / audit.rollouts,
            directory / "drains.json",
        )


def state_directory(settings: Settings) -> Path:
    """`[state] dir`, or by default the directory that `models_config` names, if that is not under `/etc`.

    Not the directory behind a symlink: that one may be a read-only volume.
    """
    if settings.state.dir is not None:
        return settings.state.dir
    return default_directory(settings.models_config or DEFAULT_MODELS_CONFIG)
