"""The key of a request's conversation or API key, for aliases that keep such requests on one target.

A conversation is identified by its first user message, which stays the same from turn to turn in every dialect. Only
its texts and attachments count, not their wrapping: between turns a client may move its cache marks, or turn a string
into a list of blocks.
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

_VALID_SESSION_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}\Z")  # as for a request id


def key_of(headers: Headers, body: bytes, sticky: Sticky) -> bytes | None:
    """The request's key, or None if it has none. The key is a hash, so that an API key is not kept in memory.

    Args:
        headers: The client's.
        body: The client's, in any dialect; valid JSON.
        sticky: The alias's setting.
    """
    if sticky == "key":
        return _hash(b"key", (_header(headers, b"authorization") or _header(headers, b"x-api-key"),))
    session_id = _header(headers, b"x-session-id")
    if session_id is not None and _VALID_SESSION_ID.match(session_id):
        return _hash(b"session", (session_id,))
    return _hash(b"content", _first_user_message(body))


def _hash(kind: bytes, parts: Iterable[bytes | None]) -> bytes | None:
    """A hash of the parts that are not empty; None if all are. Each part's length keeps `ab, c` apart from `a, bc`."""
    found = [part for part in parts if part]
    if not found:
        return None
    digest = hashlib.blake2b(digest_size=16, person=kind)
    for part in found:
        digest.update(b"%d:" % len(part))
        digest.update(part)
    return digest.digest()


def _header(headers: Headers, name: bytes) -> bytes | None:
    return next((value for header, value in headers if header == name), None)


# The first user message...


class _StickyPart(msgspec.Struct):
    """A part of a content in any dialect. Attachments count as their JSON."""

    text: str | None = None
    source: msgspec.Raw = msgspec.Raw()
    image_url: msgspec.Raw = msgspec.Raw()
    input_audio: msgspec.Raw = msgspec.Raw()
    file: msgspec.Raw = msgspec.Raw()
    file_id: msgspec.Raw = msgspec.Raw()


class _StickyTurn(msgspec.Struct):
    """A message of a chat, or an item of `/v1/responses`."""

    role: str | None = None
    content: msgspec.Raw = msgspec.Raw()


class _StickyBody(msgspec.Struct):
    """The fields that hold the user's text, of all endpoints."""

    messages: list[_StickyTurn] | None = None
    input: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()


_Content: TypeAlias = str | list[_StickyPart | str] | None
_Input: TypeAlias = str | list[_StickyTurn | str | int | list[int]] | None

_body_decoder = msgspec.json.Decoder(_StickyBody)
_content_decoder: msgspec.json.Decoder[_Content] = msgspec.json.Decoder(_Content)
_input_decoder: msgspec.json.Decoder[_Input] = msgspec.json.Decoder(_Input)


def _first_user_message(body: bytes) -> tuple[bytes, ...]:
    """Its parts; empty if the body has none, another shape or too many objects.

    The neuron or the dialect rejects a wrong shape.
    """
    if len(body) > _CLOSE_LOOK_BYTES and body.count(b"{") > _OBJECTS_LIMIT:
        return ()
    try:
        fields = _body_decoder.decode(body)
        return _from_turns(fields.messages or ()) or _from_input(fields.input) or _whole(fields.prompt)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return ()


_CLOSE_LOOK_BYTES = 64 * 1024
_OBJECTS_LIMIT = 50_000  # to decode as many takes 20 ms, and other requests wait meanwhile


def _from_turns(turns: Iterable[_StickyTurn]) -> tuple[bytes, ...]:
    messages = (tuple(filter(None, _parts(turn.content))) for turn in turns if turn.role == "user")
    return next((parts for parts in messages if parts), ())


def _from_input(value: msgspec.Raw) -> tuple[bytes, ...]:
    """`input` of `/v1/responses` is a string or items, some of them messages; of embeddings, strings or token ids."""
    decoded = _input_decoder.decode(value) if bytes(value) else None
    if isinstance(decoded, str):
        return (decoded.encode(),)
    turns = [item for item in decoded or () if isinstance(item, _StickyTurn)]
    return _from_turns(turns) if turns else _whole(value)


def _whole(value: msgspec.Raw) -> tuple[bytes, ...]:
    """All of a value without turns, like the prompt of `/v1/completions`."""
    return () if bytes(value) in _EMPTY_VALUES else (bytes(value),)


_EMPTY_VALUES = frozenset({b"", b"null", b'""', b"[]"})


def _parts(content: msgspec.Raw) -> Iterator[bytes]:
    decoded = _content_decoder.decode(content) if bytes(content) else None
    if isinstance(decoded, str):
        yield decoded.encode()
        return
    for part in decoded or ():
        if isinstance(part, str):
            yield part.encode()
            continue
        yield (part.text or "").encode()
        for attachment in (part.source, part.image_url, part.input_audio, part.file, part.file_id):
            yield bytes(attachment)
