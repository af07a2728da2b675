"""What `cortex explain` prints, from the JSON of the admin API: facts about a request, then its events in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, TypeAlias

from rich.text import Text

from gateway.cli.terminal import console

__all__ = ["lines", "print_requests"]

Json: TypeAlias = dict[str, Any]


def print_requests(requests: Sequence[Json]) -> None:
    """Print each request, with an empty line between two of them."""
    out = console()
    for number, request in enumerate(requests):
        if number:
            out.print()
        for line in lines(request):
            out.print(line, soft_wrap=True)


def lines(request: Json) -> Iterator[Text]:
    """The lines for one request."""
    yield Text(f"request {request['request_id']}", style="bold")
    yield from _facts(request)
    yield Text()
    for (at_ms, _), event_lines in sorted(_events(request), key=lambda event: event[0]):
        for number, line in enumerate(event_lines):
            yield Text.assemble((f"{_duration(at_ms) if not number else '':>10}  ", "cyan"), line)


# Facts ................................................................................................................

_OUTCOME_STYLES = {"ok": "green", "error": "red", "upstream_error": "red", "client_disconnected": "yellow"}


def _facts(request: Json) -> Iterator[Text]:
    streamed = ", streamed" if request["stream"] else ""
    yield _fact("received", f"{_timestamp(request['received_at'])}, {request['path']}{streamed}")
    if request.get("key"):
        yield _fact("key", f"{request['key']['name']} ({request['key']['id']})")
    yield _fact("model", _requested(request))
    ended = request["state"] == "ended"
    yield _fact("ended" if ended else "state", _state(request), _OUTCOME_STYLES.get(request["outcome"], ""))
    if request["error"] is not None:
        yield _fact("error", f"{request['error']['code'] or 'bad request'}: {request['error']['message']}", "red")
    yield _fact("time", _times(request))
    bytes_out = f", {request['bytes_out']:,} out" if ended else ""  # counted at the end
    yield _fact("bytes", f"{request['bytes_in']:,} in{bytes_out}")
    if request["tokens"] is not None:
        yield _fact("tokens", _tokens(request["tokens"]))
    if request.get("ignored"):
        yield _fact("ignored", request["ignored"])


def _fact(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"  {name:<11}", "dim"), (value, style))


def _requested(request: Json) -> str:
    model = request["target"] or request["model"] or "unknown: the body could not be read"
    text = model if request["alias"] is None else f"{request['alias']} -> {model}"
    if request["resolved"] is None:
        return text
    return f"{text} ({request['resolved']}), catalogue generation {request['generation']}"


def _state(request: Json) -> str:
    total = _duration(request["total_ms"])
    if request["state"] != "ended":
        position, priority = request.get("position"), request.get("priority")
        place = f" as {priority}, position {position}" if position is not None else ""
        return f"{request['state']}{place}, for {total} so far"
    status = "no status" if request["status"] is None else f"status {request['status']}"
    fallback = "" if request["target"] in {None, request["model"]} else f", by the fallback {request['model']}"
    return f"{request['outcome']}, {status}, after {total}{fallback}"


def _times(request: Json) -> str:
    phases = ", ".join(f"{name} {_duration(took_ms)}" for name, took_ms in request["phases_ms"].items()) or "none"
    first = "" if request["first_token_ms"] is None else f"; first token after {_duration(request['first_token_ms'])}"
    return f"{phases}{first}"


def _tokens(tokens: Json) -> str:
    counts = [f"{tokens[kind]:,} {kind}" for kind in ("prompt", "cached", "completion") if tokens[kind] is not None]
    return ", ".join(counts) + (" (estimated)" if tokens["estimated"] else "")


# Events ...............................................................................................................


def _events(request: Json) -> Iterator[tuple[tuple[float, float], list[Text]]]:
    """Each event's sort key and lines. Events of the same millisecond sort in the order in which models were tried."""
    tried = [request["target"], *(fallback["to"] for fallback in request["fallbacks"] if not fallback["passed_over"])]
    names_model = len(tried) > 1  # otherwise every event is about the requested model

    def sort_key(event: Json, offset: float = 0) -> tuple[float, float]:
        model = event["model"]
        return event["at_ms"], (tried.index(model) if model in tried else 0) + offset

    for choice in request["choices"]:
        decision = Text(_decision(choice, names_model=names_model))
        yield sort_key(choice), [decision, *map(_candidate, choice["candidates"])]
    for load in request["loads"]:
        yield sort_key(load), [_load(load, names_model=names_model)]
    for number, attempt in enumerate(request["attempts"]):
        is_only_replica = not number and not request["choices"]  # then there was no choice to record
        yield sort_key(attempt), [_attempt(attempt, is_only_replica=is_only_replica, names_model=names_model)]
    for fallback in request["fallbacks"]:
        yield sort_key(fallback, 0.5), [_fallback(fallback)]


_DECISIONS = {
    "load": "{} was not loaded, so a load was started",
    "wait for the load": "{} was being loaded, so the request waited",
    "wait for a place": "every slot for {} was in use, so the request was queued",
}


def _decision(choice: Json, *, names_model: bool) -> str:
    model = choice["model"] if names_model else "the model"
    if choice["node"] is not None:
        return f"{choice['node']} was chosen" + (f" for {model}" if names_model else "")
    template = _DECISIONS.get(choice["decision"])
    return f"no neuron could serve {model}: {choice['decision']}" if template is None else template.format(model)


def _candidate(candidate: Json) -> Text:
    style = "bold" if candidate["state"] == "chosen" else "dim"
    detail = f": {candidate['detail']}" if candidate["detail"] else ""
    return Text(f"  {candidate['node']:<12} {candidate['state']}{detail}", style=style)


def _load(load: Json, *, names_model: bool) -> Text:
    verb, what = "wake" if load.get("woke") else "load", load["model"] if names_model else "the model"
    text = f"{load['node']} began to {verb} {what}"
    if load["evicted"]:
        text += f", evicting {', '.join(load['evicted'])}"
    if load["took_ms"] is None:
        return Text(f"{text}; still loading")
    reason = "" if load["reason"] is None else f": {load['reason']}"
    return Text(f"{text}; {load['outcome']} after {_duration(load['took_ms'])}{reason}")


def _attempt(attempt: Json, *, is_only_replica: bool, names_model: bool) -> Text:
    text = f"sent to {attempt['node']}"
    if is_only_replica:
        text += ", the only replica"
    if names_model:
        text += f", for {attempt['model']}"
    if attempt["hedge"]:
        text += ", as a hedge"
    text += f"; {attempt['result'] or 'running'} after {_duration(attempt['took_ms'])}"
    error = "" if attempt["error"] is None else f": {attempt['error']['message']}"
    return Text(text + error, style="" if attempt["result"] in {"answered", None} else "yellow")


def _fallback(fallback: Json) -> Text:
    reason = fallback["error"]["message"]
    if fallback["passed_over"]:
        return Text(f"the fallback {fallback['to']} was skipped: {reason}", style="yellow")
    return Text(f"{fallback['model']} failed, so the request fell back to {fallback['to']}: {reason}", style="yellow")


# Numbers ..............................................................................................................


def _timestamp(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _duration(ms: float) -> str:
    if ms < 1:
        return f"{ms:.1f} ms"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.2f} s"
