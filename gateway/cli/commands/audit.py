"""What `cortex audit` does: verify the trail, show its last lines. Blocking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from typing import Any

import click

from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli.terminal import console, entry
from gateway.config.settings import Settings

__all__ = ["show", "verify"]

HASH_SHOWN = 10


def verify(settings: Settings) -> int:
    """0 if every line is as it was written, else 1 and the first that is not."""
    trail = CatalogueFiles.from_settings(settings).audit_log
    try:
        verdict = trail.verify()
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    if verdict.broken is not None:
        click.echo(f"broken: {verdict.broken}", err=True)
        click.echo(f"{verdict.lines} lines before it are in order", err=True)
        return 1
    if not verdict.lines:
        click.echo(f"{trail.path}: no lines")
        return 0
    click.echo(
        f"{trail.path}: {verdict.lines} lines, numbers {verdict.first} to {verdict.last}, are as they were written"
    )
    if verdict.first > 1:
        click.echo(f"those before number {verdict.first} were rotated away")
    if verdict.torn_bytes:
        click.echo(f"{verdict.torn_bytes} bytes of an unfinished line follow: a crash; the next line takes their place")
    click.echo(f"head {verdict.head}")
    return 0


def show(settings: Settings, limit: int, *, as_json: bool) -> int:
    """The newest lines that are in order, oldest first."""
    trail = CatalogueFiles.from_settings(settings).audit_log
    try:
        lines = [line.fields for line in islice(trail.newest_first(), limit)][::-1]
    except OSError as error:
        click.echo(f"error: {error}", err=True)
        return 1
    if as_json:
        click.echo(json.dumps({"lines": lines}, indent=2, ensure_ascii=False))
        return 0
    out = console()
    for said in lines:
        out.print(entry(_head(said), *_details(said)), soft_wrap=True)
    if not lines:
        out.print(f"{trail.path}: no lines", soft_wrap=True)
    return 0


def _head(said: dict[str, Any]) -> str:
    when = str(said.get("time", "")).replace("T", " ")
    return f"{said['seq']}  {when}  {said.get('who')}  {said.get('event')}: {said.get('outcome')}"


def _details(said: dict[str, Any]) -> Iterator[str]:
    yield f"generation {said.get('generation')}, file {str(said.get('file'))[:HASH_SHOWN]}"
    yield from str(said.get("summary") or "").split("; ")
    if command := said.get("command"):
        yield f"by: {command}"
    if lost := said.get("lost"):
        yield f"{lost} lines before this one were lost: they could not be written"
    if torn := said.get("torn_bytes"):
        yield f"in the place of {torn} bytes of an unfinished line"
