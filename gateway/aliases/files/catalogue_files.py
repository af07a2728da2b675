"""Where `models.toml` and the files about it are: audit log, history, rollout state, as `[audit]` sets. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gateway.aliases.files.audit_log import AuditLog
from gateway.aliases.files.file_history import FileHistory
from gateway.config.settings import DEFAULT_MODELS_CONFIG, Settings

__all__ = ["CatalogueFiles"]

_MB = 1024**2


@dataclass(frozen=True, slots=True)
class CatalogueFiles:
    """One `models.toml` and the files that cortex keeps beside it, unless the operator set other paths."""

    models_path: Path
    audit_log: AuditLog
    history: FileHistory
    rollouts_path: Path

    @classmethod
    def from_settings(cls, settings: Settings) -> Self:
        """Paths in `[audit]` are relative to the directory that `models_config` names.

        Not to the directory behind a symlink: that one may be a read-only volume.
        """
        models_path = settings.models_config or DEFAULT_MODELS_CONFIG
        directory, audit = models_path.parent, settings.audit
        return cls(
            models_path,
            AuditLog(
                directory / audit.path, rotate_bytes=int(audit.rotate_mb * _MB), rotated_files=audit.rotated_files
            ),
            FileHistory(directory / audit.history, files=audit.history_files, total_bytes=int(audit.history_mb * _MB)),
            directory / audit.rollouts,
        )
