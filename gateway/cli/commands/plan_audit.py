"""`cortex plan` and `cortex audit …`: options in, exit codes out."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gateway.cli.options import config_option, load_settings

__all__ = ["audit", "plan"]

_json = click.option("--json", "as_json", is_flag=True, help="One JSON object for programs, instead of text.")


@click.command()
@click.argument("models", type=click.Path(path_type=Path, dir_okay=False, exists=True), required=False)
@click.option("--offline", is_flag=True, help="Ask no gateway: compare with the last file that was in force.")
@config_option
@_json
def plan(models: Path | None, config: Path | None, *, offline: bool, as_json: bool) -> None:
    """What a models.toml would change, load and evict, before it is in force. Needs [admin] token, unless --offline.

    MODELS is the file to judge: without it, the one that cortex.toml names. Exit code 0: nothing to do; 2: changes;
    1: faulty or impossible; 3: nobody to ask, or nothing to compare with.
    """
    from gateway.cli.commands import plan as plan_desk  # noqa: PLC0415 - rich and httpx take their time

    settings = load_settings(config).settings
    sys.exit(plan_desk.run(settings, models, offline=offline, as_json=as_json))


@click.group()
def audit() -> None:
    """The audit trail: who changed models.toml, when, and what came of it."""


@audit.command()
@config_option
def verify(config: Path | None) -> None:
    """Check that no line was changed or is missing. Exit code 1 names the first that is not as it was written."""
    from gateway.cli.commands import audit as audit_desk  # noqa: PLC0415 - as above

    sys.exit(audit_desk.verify(load_settings(config).settings))


@audit.command()
@click.option("--limit", type=click.IntRange(1), default=20, show_default=True, help="How many lines, from the newest.")
@config_option
@_json
def show(limit: int, config: Path | None, *, as_json: bool) -> None:
    """The last lines, oldest first."""
    from gateway.cli.commands import audit as audit_desk  # noqa: PLC0415 - as above

    sys.exit(audit_desk.show(load_settings(config).settings, limit, as_json=as_json))
