"""Where everything is kept that is remembered of a `models.toml`, as `[audit]` says. No I/O."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gateway.aliases.files.audit_log import Trail
from gateway.aliases.files.file_history import History
from gateway.config.settings import DEFAULT_MODELS_CONFIG, Settings

__all__ = ["Records"]

_MB = 1024**2


@dataclass(frozen=True, slots=True)
class Records:
    """Beside `models`, unless the operator says otherwise. `rollouts` is a file."""

    models: Path
    trail: Trail
    history: History
    rollouts: Path

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Relative to the directory that `models.toml` is named in: behind a symlink may be a read-only volume."""
        models = settings.models_config or DEFAULT_MODELS_CONFIG
        beside, audit = models.parent, settings.audit
        return cls(
            models,
            Trail(beside / audit.path, rotate_bytes=int(audit.rotate_mb * _MB), kept=audit.rotated_files),
            History(beside / audit.history, files=audit.history_files, total_bytes=int(audit.history_mb * _MB)),
            beside / audit.rollouts,
        )
