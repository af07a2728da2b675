"""What tells one conversation, or one API key, from another: for aliases whose requests keep their target. Pure.

A conversation is known by its beginning: the first thing its user said stays the same from turn to turn, in every
dialect. Only text and attachments count, not how they are wrapped: a client may move its cache marks, or turn a string
into a list of blocks, between one turn and the next.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import TypeAlias

import msgspec

from catalogue.models import Sticky
from gateway.asgi import Headers

__all__ = ["key_of"]

_SANE_SESSION_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")  # as for a request id, contract section 13


def key_of(headers: Headers, body: bytes, sticky: Sticky) -> bytes | None:
    """The request's key under this kind of stickiness, or None if it has none. A hash: secrets do not travel further.

    Args:
        headers: The client's.
        body: As the client sent it, in whichever dialect; valid JSON.
        sticky: What the alias says.
    """
    if sticky == "key":
        return _hashed(b"key", (_first(headers, b"authorization") or _first(headers, b"x-api-key"),))
    session = _first(headers, b"x-session-id")
    if session is not None and _SANE_SESSION_ID.match(session):
        return _hashed(b"session", (session,))
    return _hashed(b"content", _beginning(body))


def _hashed(kind: bytes, parts: Iterable[bytes | None]) -> bytes | None:
    """Of all parts, each with its length so that no two lists look alike; None if there is nothing to hash."""
    found = [part for part in parts if part]
    if not found:
        return None
    digest = hashlib.blake2b(digest_size=16, person=kind)
    for part in found:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _first(headers: Headers, name: bytes) -> bytes | None:
    return next((value for known, value in headers if known == name), None)


# The beginning of a conversation ......................................................................................


class _Part(msgspec.Struct):
    """A block of content in any dialect. Everything but text is taken as it stands."""

    text: str | None = None
    source: msgspec.Raw = msgspec.Raw()
    image_url: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    file: msgspec.Raw = msgspec.Raw()
    file_id: msgspec.Raw = msgspec.Raw()


class _Turn(msgspec.Struct):
    """A message of a chat, or an item of `/v1/responses`."""

    role: str | None = None
    content: msgspec.Raw = msgspec.Raw()


class _Body(msgspec.Struct):
    """Where the four kinds of request keep what the user said."""

    messages: list[_Turn] | None = None
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_Content: TypeAlias = str | list[_Part | str] | None
_Input: TypeAlias = str | list[_Turn | str | int | list[int]] | None

_body = msgspec.json.Decoder(_Body)
_content: msgspec.json.Decoder[_Content] = msgspec.json.Decoder(_Content)
_input: msgspec.json.Decoder[_Input] = msgspec.json.Decoder(_Input)


def _beginning(body: bytes) -> tuple[bytes, ...]:
    """The first thing the user said; nothing if there is no telling, and then the request goes anywhere."""
    try:
        said = _body.decode(body)
        return _of_turns(said.messages or ()) or _of_input(said.input) or _as_it_stands(said.prompt)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()


def _of_turns(turns: Iterable[_Turn]) -> tuple[bytes, ...]:
    said = (tuple(filter(None, _parts(turn.content))) for turn in turns if turn.role == "user")
    return next((parts for parts in said if parts), ())


def _of_input(value: msgspec.Raw) -> tuple[bytes, ...]:
    """Of `/v1/responses`: a string, or items of which messages have roles. Of embeddings: strings or tokens."""
    said = _input.decode(value) if bytes(value) else None
    if isinstance(said, str):
        return (said.encode(),)
    turns = [item for item in said or () if isinstance(item, _Turn)]
    return _of_turns(turns) if turns else _as_it_stands(value)


def _as_it_stands(value: msgspec.Raw) -> tuple[bytes, ...]:
    """What has no turns, like a prompt of `/v1/completions`: there is no more to it, so all of it is the beginning."""
    return () if bytes(value) in _SAYS_NOTHING else (bytes(value),)


_SAYS_NOTHING = frozenset({b"", b"null", b'""', b"[]"})


def _parts(content: msgspec.Raw) -> Iterator[bytes]:
    said = _content.decode(content) if bytes(content) else None
    if isinstance(said, str):
        yield said.encode()
        return
    for part in said or ():
        if isinstance(part, str):
            yield part.encode()
            continue
        yield (part.text or "").encode()
        for attached in (part.source, part.image_url, part.input_audio, part.file, part.file_id):
            yield bytes(attached)
