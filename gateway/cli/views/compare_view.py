"""`cortex alias compare`: an alias beside its shadow, for a person at a terminal. Judging is `verdict.py`."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from gateway.cli import api_client
from gateway.cli.alias_edit import DONE, AliasCommands, Refused
from gateway.cli.api_client import NoAnswer
from gateway.cli.terminal import console, table

__all__ = ["compare"]


def compare(desk: AliasCommands, name: str, *, as_json: bool) -> int:
    """Raises Refused if there is no gateway to ask, no token, no such alias, or it has no shadow."""
    told = _ask(desk, name)
    if told["candidate"] is None:
        raise Refused(
            f"'{name}' has no shadow: give it one in {desk.records.models_path}, shadow = {{ model, percent }}"
        )
    if as_json:
        click.echo(json.dumps(told, indent=2, ensure_ascii=False))
        return DONE
    out = console()
    out.print(told["verdict"])
    if told["compared"]:
        out.print()
        out.print(_figures(told))
    results = ", ".join(f"{count} {result}" for result, count in sorted(told["results"].items()))
    out.print(f"\nsince the gateway's start: {results or 'nothing yet'}")
    return DONE


def _ask(desk: AliasCommands, name: str) -> dict[str, Any]:
    gateway = desk.gateway
    if gateway.token is None:
        raise Refused("comparisons are told to operators only: set [admin] token, or CORTEX_ADMIN__TOKEN")
    bearer = {"authorization": f"Bearer {gateway.token}"}
    try:
        with api_client.client() as client:
            url = f"{gateway.admin}/admin/shadows/{quote(name)}"
            return api_client.get(client, url, ("candidate", "compared", "results", "verdict"), bearer)
    except NoAnswer as error:
        raise Refused(str(error)) from error


def _figures(told: dict[str, Any]) -> Any:
    target, shadow = told["target"], told["shadow"]
    drawn = table(told["alias"], "", ", ".join(target["models"]), told["candidate"])
    for key, words in _ROWS.items():
        drawn.add_row(words, _spread(target[key]), _spread(shadow[key]))
    drawn.add_row("finish reasons", _counted(target["finish_reasons"]), _counted(shadow["finish_reasons"]))
    drawn.add_row("tool calls valid", _share(target["tool_calls_valid"]), _share(shadow["tool_calls_valid"]))
    drawn.add_row("same answer", "", _share(told["same_answer"]))
    drawn.add_row("same finish reason", "", _share(told["same_finish_reason"]))
    return drawn


_ROWS = {
    "first_token_ms": "first token ms, median / p95",
    "duration_ms": "whole answer ms",
    "tokens_per_s": "tokens/s",
    "completion_tokens": "tokens",
}


def _spread(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{value['median']:,.1f} / {value['p95']:,.1f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in counts.items())
