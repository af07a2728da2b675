"""`cortex explain`: one request's story, asked of the admin API and told to a person at a terminal. Blocking."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import click
import httpx
from rich.console import Console
from rich.text import Text

from gateway.cli import api_client

__all__ = ["explain"]

NOT_FOUND, UNREACHABLE = 1, 2  # exit codes

Story = dict[str, Any]


def explain(admin: str, token: str, request_id: str, *, as_json: bool) -> int:
    """Tell of every request with this id; returns the exit code: 0, 1 if there is none, 2 if the gateway is silent."""
    console = Console(markup=False, emoji=False, highlight=False, soft_wrap=True)
    errors = Console(stderr=True, markup=False, emoji=False, highlight=False, soft_wrap=True)
    url = f"{admin}/admin/requests/{quote(request_id, safe='')}"
    try:
        answer = httpx.get(
            url, headers={"authorization": f"Bearer {token}"}, timeout=api_client.ANSWER_S, trust_env=False
        )
        body = answer.json()
    except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
        errors.print(f"cortex explain: no answer from {admin}: {error}")
        return UNREACHABLE
    if not answer.is_success:
        errors.print(f"cortex explain: {body['error']['message']}")
        return NOT_FOUND
    if as_json:
        click.echo(json.dumps(body, indent=2, ensure_ascii=False))
        return 0
    for number, story in enumerate(body["requests"]):
        if number:
            console.print()
        for line in lines(story):
            console.print(line)
    return 0


def lines(story: Story) -> Iterator[Text]:
    """What is printed, line by line."""
    yield Text(f"request {story['request_id']}", style="bold")
    yield from _facts(story)
    yield Text()
    for (at_ms, _), told in sorted(_happenings(story), key=lambda happening: happening[0]):
        for number, line in enumerate(told):
            yield Text.assemble((f"{_duration(at_ms) if not number else '':>10}  ", "cyan"), line)


def _facts(story: Story) -> Iterator[Text]:
    yield _fact(
        "received", f"{_moment(story['received_at'])}, {story['path']}{', streamed' if story['stream'] else ''}"
    )
    yield _fact("asked for", _asked_for(story))
    yield _fact("ended" if story["state"] == "ended" else "now", _ending(story), _STYLES.get(story["outcome"], ""))
    if story["error"] is not None:
        yield _fact("error", f"{story['error']['code'] or 'bad request'}: {story['error']['message']}", "red")
    yield _fact("time", _times(story))
    yield _fact("bytes", f"{story['bytes_in']:,} in, {story['bytes_out']:,} out")
    if story["tokens"] is not None:
        yield _fact("tokens", _tokens(story["tokens"]))


_STYLES = {"ok": "green", "error": "red", "upstream_error": "red", "client_disconnected": "yellow"}


def _fact(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"  {name:<11}", "dim"), (value, style))


def _asked_for(story: Story) -> str:
    model = story["target"] or story["model"] or "a model that could not be read"
    told = model if story["alias"] is None else f"{story['alias']}: {model}"
    if story["resolved"] is None:
        return told
    return f"{told} ({story['resolved']}), in generation {story['generation']} of the catalogue"


def _ending(story: Story) -> str:
    total = _duration(story["total_ms"])
    if story["state"] != "ended":
        return f"{story['state']}, for {total}"
    status = "without a status" if story["status"] is None else f"with status {story['status']}"
    stood_in = "" if story["target"] in {None, story["model"]} else f", by {story['model']} in its place"
    return f"{story['outcome']} {status}, after {total}{stood_in}"


def _times(story: Story) -> str:
    phases = ", ".join(f"{name} {_duration(took)}" for name, took in story["phases_ms"].items()) or "none"
    first = "" if story["first_token_ms"] is None else f"; first token after {_duration(story['first_token_ms'])}"
    return f"{phases}{first}"


def _tokens(tokens: Story) -> str:
    told = [f"{tokens[kind]:,} {kind}" for kind in ("prompt", "cached", "completion") if tokens[kind] is not None]
    return ", ".join(told) + (" (estimated)" if tokens["estimated"] else "")


# What happened, each as its time and one line or more...


def _happenings(story: Story) -> Iterator[tuple[tuple[float, float], list[Text]]]:
    """With when it was: what is of one moment stays in the order in which models were tried."""
    tried = [story["target"], *(fallback["to"] for fallback in story["fallbacks"] if not fallback["passed_over"])]
    names = len(tried) > 1  # else all is of the model that was asked for

    def when(happening: Story, then: float = 0) -> tuple[float, float]:
        model = happening["model"]
        return happening["at_ms"], (tried.index(model) if model in tried else 0) + then

    for choice in story["choices"]:
        yield when(choice), [Text(_decided(choice, names=names)), *map(_candidate, choice["candidates"])]
    for load in story["loads"]:
        yield when(load), [_load(load, names=names)]
    for number, attempt in enumerate(story["attempts"]):
        is_alone = not number and not story["choices"]  # then nothing was noted: there was nothing to decide
        yield when(attempt), [_attempt(attempt, ", the only one to have it," if is_alone else "", names=names)]
    for fallback in story["fallbacks"]:
        yield when(fallback, 0.5), [_fallback(fallback)]


def _decided(choice: Story, *, names: bool) -> str:
    if choice["node"] is not None:
        return f"{choice['node']} was chosen" + (f" for {choice['model']}" if names else "")
    told = _DECISIONS.get(choice["decision"], f"nobody could be asked for {{}}: {choice['decision']}")
    return told.format(choice["model"] if names else "it")


_DECISIONS = {
    "load": "{} had to be loaded",
    "wait for the load": "{} was being loaded",
    "wait for a place": "every place for {} was taken",
}


def _candidate(candidate: Story) -> Text:
    style = "bold" if candidate["state"] == "chosen" else "dim"
    detail = f": {candidate['detail']}" if candidate["detail"] else ""
    return Text(f"  {candidate['node']:<12} {candidate['state']}{detail}", style=style)


def _load(load: Story, *, names: bool) -> Text:
    told = f"{load['node']} began to load {load['model'] if names else 'it'}"
    if load["evicted"]:
        told += f" in place of {', '.join(load['evicted'])}"
    if load["took_ms"] is None:
        return Text(f"{told}; still at it")
    reason = "" if load["reason"] is None else f": {load['reason']}"
    return Text(f"{told}; {load['outcome']} after {_duration(load['took_ms'])}{reason}")


def _fallback(fallback: Story) -> Text:
    why = fallback["error"]["message"]
    if fallback["passed_over"]:
        return Text(f"{fallback['to']} was passed over: {why}", style="yellow")
    return Text(f"nobody could serve {fallback['model']}, so it fell back to {fallback['to']}: {why}", style="yellow")


def _attempt(attempt: Story, as_what: str, *, names: bool) -> Text:
    result = attempt["result"] or "under way"
    asked = "was asked as well" if attempt["hedge"] else "was asked"
    whom = f" for {attempt['model']}" if names else ""
    told = f"{attempt['node']}{as_what} {asked}{whom}; {result} after {_duration(attempt['took_ms'])}"
    error = "" if attempt["error"] is None else f": {attempt['error']['message']}"
    return Text(told + error, style="" if attempt["result"] in {"answered", None} else "yellow")


# Words for numbers...


def _moment(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(ms: float) -> str:
    if ms < 1:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"
