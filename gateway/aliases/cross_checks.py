"""Faults between the files and the host that neither file has alone: for `cortex check` and at start. Blocking."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from catalogue.models import Catalogue
from catalogue.nearest import did_you_mean
from catalogue.toml.faults import Fault
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.config.settings import NeuronSettings, Settings

__all__ = ["cross_check"]


def cross_check(settings: Settings, catalogue: Catalogue, neurons: Sequence[NeuronSettings]) -> Iterator[Fault]:
    """Warnings about pins to neurons that do not exist, and about files that this user cannot write.

    `neurons` are those in force, from `cortex.toml` or the file that `neurons_config` names.
    """
    files = CatalogueFiles.from_settings(settings)
    yield from _unknown_pins(neurons, catalogue, str(files.models_path))
    records = (
        ("audit.path", files.audit_log.path),
        ("audit.history", files.history.folder),
        ("audit.rollouts", files.rollouts_path),
    )
    for key, path in records:
        if (reason := _why_not_writable(path)) is not None:
            hint = "changes of models.toml cannot be recorded or rolled back: let the user of the gateway write there"
            yield Fault(str(path), None, key, reason, hint)
    spool = settings.gateway.spool_dir or Path(tempfile.gettempdir())
    if not spool.is_dir():
        yield Fault(str(spool), None, "gateway.spool_dir", "is not a directory", "large uploads will fail: create it")
    elif not os.access(spool, os.W_OK | os.X_OK):
        hint = "large uploads will fail: let the user of the gateway write there"
        yield Fault(str(spool), None, "gateway.spool_dir", "cannot be written by this user", hint)


def _unknown_pins(neurons: Sequence[NeuronSettings], catalogue: Catalogue, path: str) -> Iterator[Fault]:
    names = [neuron.name for neuron in neurons]
    for profile in catalogue.models.values():
        for pin in profile.pinned_on:
            if pin not in names:
                hint = did_you_mean(pin, names).removeprefix("; ") or f"the neurons are {', '.join(names) or 'none'}"
                message = f"pins {profile.id} to {pin!r}, and there is no such neuron"
                yield Fault(path, None, "pinned_on", message, hint)


def _why_not_writable(path: Path) -> str | None:
    """Why this user cannot write a file or directory that need not exist yet; None if that seems possible."""
    if path.exists():
        return None if os.access(path, os.W_OK) else "cannot be written by this user"
    if not path.parent.is_dir():
        return f"cannot be created: {path.parent} is not a directory"
    return None if os.access(path.parent, os.W_OK | os.X_OK) else "cannot be created by this user"
