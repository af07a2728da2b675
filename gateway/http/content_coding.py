"""Content codings (RFC 9110, section 8.4.1): decodes a compressed body piece by piece, within a limit. No I/O.

zlib decodes gzip and deflate; `backports.zstd`, the standard library's module of Python 3.14, decodes zstd.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable
from typing import Protocol

__all__ = ["CODINGS", "ContentDecoder", "MalformedContent", "coding_in"]

CODINGS = ("gzip", "deflate", "zstd")
FRAMES_LIMIT = 10_000  # gzip members or zstd frames of one body: each costs an object, however empty it is
WINDOW_LOG_LIMIT = 27  # 128 MiB, the most that libzstd takes by default; `zstd --ultra -22` uses it


class MalformedContent(Exception):
    """The bytes are not what their content coding says. The text continues "the body is"."""


class _Stream(Protocol):
    """What `zlib.decompressobj` and `ZstdDecompressor` have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def coding_in(values: list[bytes]) -> str | None:
    """The one coding that these `content-encoding` lines name; None for an uncoded body.

    Raises:
        ValueError: A coding that cannot be decoded, or several of them; the text names them.
    """
    named = [name.strip().lower() for name in b",".join(values).decode("latin-1").split(",")]
    named = [name for name in named if name not in {"", "identity"}]
    if not named:
        return None
    coding = named[0].removeprefix("x-") if named[0] == "x-gzip" else named[0]  # RFC 9110, section 8.4.1.3
    if len(named) > 1 or coding not in CODINGS:
        raise ValueError(", ".join(named))
    return coding


class ContentDecoder:
    """Decodes one body.

    Args:
        coding: One of `CODINGS`.

    Attributes:
        has_more: Whether the bytes fed so far decode to more than was returned: call `decode` again.
    """

    __slots__ = ("_coding", "_frames", "_input", "_new_stream", "_stream", "has_more")

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._new_stream = _NEW_STREAM[coding]
        self._stream: _Stream | None = None
        self._frames = 0
        self._input = b""
        self.has_more = False

    def decode(self, data: bytes, limit_bytes: int) -> bytes:
        """Feed `data` and return at most `limit_bytes` of what all data so far decodes to.

        Raises:
            MalformedContent: The data is not in this coding.
        """
        self._input += data
        pieces: list[bytes] = []
        room = limit_bytes
        try:
            while room > 0 and (self._stream is not None or self._begin()):
                piece = self._step(room)
                pieces.append(piece)
                room -= len(piece)
                if not piece and self._stream is not None:
                    break  # it needs more data
        except zlib.error as error:
            raise MalformedContent(f"not valid {self._coding}: {error}") from error
        self.has_more = room <= 0
        return b"".join(pieces)

    def finish(self) -> None:
        """All data has been fed and decoded. Raises MalformedContent if it ends in the middle."""
        if self._stream is not None or self._input:
            raise MalformedContent(f"not valid {self._coding}: it is cut short")

    def _begin(self) -> bool:
        """Begin the next gzip member or zstd frame. False if its first bytes have not arrived."""
        if not self._input or (self._coding == "deflate" and len(self._input) < 2):
            return False
        if self._frames and (self._coding == "deflate" or self._frames >= FRAMES_LIMIT):
            raise MalformedContent(f"not valid {self._coding}: there is data after its end")
        self._frames += 1
        self._stream = self._new_stream(self._input)
        return True

    def _step(self, limit_bytes: int) -> bytes:
        stream = self._stream
        if stream is None:
            raise RuntimeError("a step before the stream has begun")
        piece = stream.decompress(self._input, limit_bytes)
        # A zlib stream hands back what it did not read; a zstd stream keeps it.
        self._input = getattr(stream, "unconsumed_tail", b"")
        if stream.eof:
            self._input = stream.unused_data
            self._stream = None
        return piece


def _gzip(_: bytes) -> _Stream:
    return zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)


def _deflate(start: bytes) -> _Stream:
    """The zlib format, as the RFC says, or bare deflate, as some senders understand it."""
    is_zlib = start[0] & 0x0F == 8 and int.from_bytes(start[:2]) % 31 == 0  # RFC 1950, section 2.2
    return zlib.decompressobj(wbits=zlib.MAX_WBITS if is_zlib else -zlib.MAX_WBITS)


class _ZstdStream:
    """One zstd frame. The library is loaded with the first one: most gateways never get any."""

    def __init__(self, _: bytes) -> None:
        if sys.version_info >= (3, 14):
            from compression import zstd  # noqa: PLC0415 - see above
        else:
            from backports import zstd  # noqa: PLC0415 - see above
        options = {int(zstd.DecompressionParameter.window_log_max): WINDOW_LOG_LIMIT}
        self._decompressor = zstd.ZstdDecompressor(options=options)
        self._error = zstd.ZstdError

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def unused_data(self) -> bytes:
        return bytes(self._decompressor.unused_data)

    def decompress(self, data: bytes, max_length: int, /) -> bytes:
        try:
            return bytes(self._decompressor.decompress(data, max_length))
        except self._error as error:
            raise MalformedContent(f"not valid zstd: {error}") from error


_NEW_STREAM: dict[str, Callable[[bytes], _Stream]] = {"gzip": _gzip, "deflate": _deflate, "zstd": _ZstdStream}
