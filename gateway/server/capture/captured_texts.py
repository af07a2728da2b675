"""The texts in the bodies of a request and of its answer, and their redaction. Pure; raises nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from gateway.http.sse import Reader

__all__ = ["answer_text", "redacted", "request_texts"]

# Most specific first: an address is also a name with digits. What they miss stays, so redaction is no anonymisation.
_SECRETS = (
    (re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b"), "[e-mail]"),
    (re.compile(r"\b(?:ctx|sk|pk|ghp|gho|xox[bp]|hf|AKIA)[-_]?[A-Za-z0-9_-]{12,}\b"), "[secret]"),
    (re.compile(r"\b(?=\w*\d)(?=\w*[A-Za-z])[\w+/-]{32,}\b"), "[secret]"),
    (re.compile(r"\b(?:\d{1,3}\.){3}\d{1,3}\b"), "[address]"),
    (re.compile(r"(?<!\w)\+?\d(?:[ ()./-]?\d){6,}(?!\w)"), "[number]"),
)


def redacted(text: str) -> str:
    """The text without e-mail addresses, secrets, IP addresses and long numbers."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def request_texts(body: bytes) -> list[dict[str, str]]:
    """The messages of a request, as `role` and `text`; of any dialect. One of role `body` if it is not understood."""
    parsed = _decoded(body)
    if not isinstance(parsed, dict):
        return [{"role": "body", "text": body.decode("utf-8", "replace")}]
    before = [parsed[name] for name in ("system", "instructions") if parsed.get(name)]
    found = [{"role": "system", "text": _text_of(value)} for value in before]
    turns = parsed.get("messages") or parsed.get("input") or parsed.get("prompt") or []
    for turn in turns if isinstance(turns, list) else [turns]:
        role = turn.get("role", turn.get("type", "user")) if isinstance(turn, dict) else "user"
        found.append({"role": str(role), "text": _text_of(turn)})
    return found


def answer_text(content_type: bytes, body: bytes) -> str:
    """The text of an answer, streamed or whole, with its thinking and tool calls; of any dialect."""
    if content_type.startswith(b"text/event-stream"):
        return "".join(_delta_of(_decoded(event.data)) for event in Reader().feed(body) if event.data)
    parsed = _decoded(body)
    if parsed is None:
        return body.decode("utf-8", "replace")
    return "\n".join(filter(None, _answers_in(parsed))) or _shortest(parsed)


def _answers_in(parsed: Any) -> Iterator[str]:
    if not isinstance(parsed, dict):
        return
    if isinstance(parsed.get("error"), dict):
        yield str(parsed["error"].get("message", ""))
    for choice in parsed.get("choices") or ():
        if isinstance(choice, dict):
            yield _text_of(choice.get("message") or choice.get("text"))
    for part in ("content", "output"):
        if parsed.get(part):
            yield _text_of(parsed[part])


def _delta_of(parsed: Any) -> str:
    if not isinstance(parsed, dict):
        return ""
    if isinstance(parsed.get("error"), dict):
        return f"\n{parsed['error'].get('message', '')}"
    if "choices" in parsed:
        deltas = (choice.get("delta") or choice for choice in parsed["choices"] or () if isinstance(choice, dict))
        return "".join(map(_text_of, deltas))
    delta = parsed.get("delta")
    return _text_of(delta) if isinstance(delta, dict | str) else ""


_TEXT_KEYS = ("reasoning_content", "thinking", "content", "text", "output", "arguments", "partial_json", "tool_calls")


def _text_of(value: Any) -> str:
    """All text in a message, block or delta; other content by its kind."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text_of, value))
    return _text_of_block(value) if isinstance(value, dict) else ""


def _text_of_block(value: dict[str, Any]) -> str:
    kind = str(value.get("type", ""))
    if any(medium in kind for medium in ("image", "audio", "file", "document")):
        return f"[{kind}]"
    function = value.get("function")
    if isinstance(function, dict):
        return f"{function.get('name') or ''}{function.get('arguments') or ''}"
    if kind == "tool_use":
        return f"{value.get('name', '')}{_shortest(value.get('input'))}"
    return "".join(_text_of(value[key]) for key in _TEXT_KEYS if value.get(key))


def _shortest(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _decoded(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError):
        return None
