"""multipart/form-data as it passes: where the `model` field stands, and that the whole is a form. Bytes in, no I/O.

RFC 7578 over RFC 2046, section 5.1. An upload may be hundreds of megabytes, so nothing is kept but the headers of the
part being read and the two small fields we act on. Routing and replacing go by the same place (`ModelPart`), as for
JSON (`rewrite.py`). The neuron has a parser of its own; a form that two parsers could take apart differently is
refused, as is a JSON body with two `model` keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import MalformedMultipart, MissingModelField

__all__ = ["FormLimits", "FormReader", "ModelPart", "boundary_of"]


class ModelPart(NamedTuple):
    """The one field named `model`: its value, and where it stands as byte offsets of the body."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FormLimits:
    """What a client could make grow without ever sending a file."""

    parts: int = 1000  # Starlette's limit, and so that of most engines
    header_bytes: int = 8192  # of one part; python-multipart, which Starlette uses, allows eight of 4096
    field_bytes: int = 1024  # of `model`; a path on some engine's disk may be one
    around_bytes: int = 8192  # of each of preamble, epilogue, and the padding of a boundary line


def boundary_of(content_type: bytes) -> bytes:
    """The boundary a `multipart/form-data` content type names.

    Raises:
        MalformedMultipart: It names none, several, or one that RFC 2046 does not allow.
    """
    _, parameters = _parameters(content_type)
    boundaries = [value for name, value in parameters if name == b"boundary"]
    if len(boundaries) != 1 or _BOUNDARY.fullmatch(boundaries[0]) is None:
        raise _malformed("its content-type must name one boundary of 1 to 70 characters (RFC 2046, section 5.1.1)")
    return boundaries[0]


class FormReader:
    """Feed it the body as it comes; `model` is set as soon as that field is whole, `finish` checks the end.

    Args:
        boundary: From `boundary_of`.
        limits: See there.
    """

    __slots__ = (
        "_at",
        "_content_at",
        "_delimiter",
        "_held",
        "_limits",
        "_parts",
        "_state",
        "_wanted",
        "model",
        "stream",
    )

    def __init__(self, boundary: bytes, limits: FormLimits | None = None) -> None:
        self._delimiter = b"--" + boundary
        self._limits = limits or FormLimits()
        # A boundary line begins with a line end. The body's first one may do without; so one is put before the body.
        self._held = b"\r\n"
        self._at = -2  # of the first byte that is held, in the body
        self._content_at = -2  # where the content being scanned begins, in the body
        self._parts = 0
        self._wanted: bytes | None = None  # the name of the field being read, if it is one we act on
        self._state: Callable[[FormReader], bool] = FormReader._read_preamble
        self.model: ModelPart | None = None
        self.stream = False  # a field `stream` with a true value has passed

    def feed(self, data: bytes) -> None:
        """Read what came; after an exception it is of no more use.

        Raises:
            MalformedMultipart: Not a form, or not one that all parsers agree about.
            MissingModelField: `model` is there twice, sent as a file, or too long to be one.
        """
        self._held += data
        while self._state(self):
            pass

    def finish(self) -> ModelPart:
        """The body has ended: its `model`. Raises as `feed` does, and if the form is cut short or has none."""
        if self._state is FormReader._read_boundary_line and self._held.startswith(b"--"):
            self._held += b"\r\n"  # the line end behind the last boundary may be missing
            self._read_boundary_line()
        if self._state is not FormReader._read_epilogue:
            raise _malformed("it ends before its closing boundary")
        if self.model is None:
            raise MissingModelField(
                "the form has no field `model`: name a model or an alias from /v1/models", param="model"
            )
        return self.model

    # One method for each thing that can be read. True: something was, look again; False: more bytes are needed ........

    def _read_preamble(self) -> bool:
        return self._scan()

    def _read_boundary_line(self) -> bool:
        """What follows `--boundary`: the end of that line, or `--` and the end of the line, and with it of the form."""
        line, end, _ = self._held.partition(b"\n")
        self._refuse_beyond(self._limits.around_bytes, len(line))
        if not end:
            return False
        if not line.endswith(b"\r"):
            raise _malformed(_ON_A_LINE_OF_ITS_OWN)
        closing = line.startswith(b"--")
        if line[2 if closing else 0 : -1].strip(b" \t"):
            raise _malformed("a line begins with its boundary and goes on")
        self._drop(len(line) - 1)
        self._state = FormReader._read_epilogue if closing else FormReader._read_headers
        self._content_at = self._at
        return True

    def _read_headers(self) -> bool:
        """A part's headers, from the line end before them to the empty line behind them."""
        end = self._held.find(b"\r\n\r\n")
        self._refuse_beyond(self._limits.header_bytes, len(self._held) if end < 0 else end)
        if end < 0:
            return False
        self._parts += 1
        if self._parts > self._limits.parts:
            raise _malformed(f"it has more than {self._limits.parts} parts")
        self._wanted = self._wanted_of(self._held[2:end])
        self._drop(end + 2)  # the line end of the empty line stays, for `_scan` to see what comes before the content
        self._content_at = self._at + 2
        self._state = FormReader._read_content
        return True

    def _read_content(self) -> bool:
        return self._scan()

    def _read_epilogue(self) -> bool:
        return self._scan()

    # Content ..........................................................................................................

    def _scan(self) -> bool:
        """Go on to the next boundary line, and past it; what is passed is nobody's business but for the two fields."""
        found = self._held.find(self._delimiter)
        while found >= 0:
            before = self._held[max(found - 2, 0) : found]
            if before.endswith((b"\n", b"\r")):
                self._end_content(found, before)
                return True
            found = self._held.find(self._delimiter, found + 1)
        self._pass_over()
        return False

    def _end_content(self, found: int, before: bytes) -> None:
        """A line begins with the boundary. After a bare CR or LF, or right behind the empty line that ends a part's
        headers, it does so for some parsers only.
        """
        if before != b"\r\n" or self._at + found - 2 < self._content_at:
            raise _malformed(_ON_A_LINE_OF_ITS_OWN)
        if self._state is FormReader._read_epilogue:
            raise _malformed("its boundary comes again after the closing one")
        if self._wanted is not None:
            self._take(self._held[self._content_at - self._at : found - 2])
        self._refuse_much_around(found)
        self._drop(found + len(self._delimiter))
        self._state = FormReader._read_boundary_line

    def _pass_over(self) -> None:
        """Nothing of a boundary here, but for what may be the beginning of one."""
        if self._wanted is not None:
            self._refuse_long_field(len(self._held) - len(self._delimiter) - 4)
            return
        self._refuse_much_around(len(self._held))
        self._drop(max(len(self._held) - len(self._delimiter) - 1, 0))  # a boundary less a byte, and the CRLF before it

    def _refuse_much_around(self, up_to: int) -> None:
        size = self._at + up_to - self._content_at
        if size > self._limits.around_bytes and self._state is not FormReader._read_content:
            raise _malformed(f"more than {self._limits.around_bytes} bytes stand before or after its parts")

    def _refuse_long_field(self, size: int) -> None:
        if size <= self._limits.field_bytes:
            return
        if self._wanted == b"model":
            raise _no_model(f"is longer than {self._limits.field_bytes} bytes")
        self._wanted = None  # not a `stream` we know

    def _take(self, value: bytes) -> None:
        """One of our two fields is whole."""
        self._refuse_long_field(len(value))
        if self._wanted == b"model":
            try:
                name = value.decode()
            except UnicodeDecodeError:
                raise _malformed("its field `model` is not UTF-8") from None
            if not name:
                raise _no_model("is empty: name a model or an alias from /v1/models")
            self.model = ModelPart(name, self._content_at, self._content_at + len(value))
        elif self._wanted == b"stream":
            self.stream = self.stream or value.strip().lower() in _TRUE
        self._wanted = None

    def _drop(self, count: int) -> None:
        self._held = self._held[count:]
        self._at += count

    def _refuse_beyond(self, limit_bytes: int, size: int) -> None:
        if size > limit_bytes:
            raise _malformed(f"the headers of a part, or a boundary line, are longer than {limit_bytes} bytes")

    # Headers ..........................................................................................................

    def _wanted_of(self, block: bytes) -> bytes | None:
        """The part's name if we act on it, from its headers."""
        headers = [_header(line) for line in block.split(b"\r\n")] if block else []
        dispositions = [value for name, value in headers if name == b"content-disposition"]
        if len(dispositions) != 1:
            raise _malformed("each part needs one Content-Disposition (RFC 7578, section 4.2)")
        kind, parameters = _parameters(dispositions[0])
        names = [(name, value) for name, value in parameters if name == b"name" or name.startswith(b"name*")]
        if kind != b"form-data" or [name for name, _ in names] != [b"name"]:
            raise _malformed("each part needs `Content-Disposition: form-data` with one plain name")
        wanted = names[0][1]
        if wanted != b"model":
            return wanted if wanted == b"stream" else None
        if self.model is not None:
            raise _no_model("is there twice: parsers disagree about which one counts")
        if any(name.startswith(b"filename") for name, _ in parameters):
            raise _no_model("must be a plain field, not a file")
        if any(name == b"content-transfer-encoding" and value.lower() not in _AS_IT_IS for name, value in headers):
            raise _malformed("its field `model` has a Content-Transfer-Encoding (RFC 7578, section 4.7)")
        return b"model"


_ON_A_LINE_OF_ITS_OWN = "each boundary must stand on a line of its own, between CRLFs"
_TRUE = frozenset({b"true", b"1", b"yes", b"on", b"t", b"y"})  # as pydantic reads a form's boolean
_AS_IT_IS = frozenset({b"7bit", b"8bit", b"binary"})
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(rb'[ \t]*;[ \t]*([^\s;="]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))[ \t]*')
_ESCAPED = re.compile(rb"\\(.)")


def _header(line: bytes) -> tuple[bytes, bytes]:
    """One header, its name in lower case. Folded ones are refused: not all parsers unfold."""
    name, colon, value = line.partition(b":")
    if not colon or _TOKEN.fullmatch(name) is None or _CONTROLS.search(value) is not None:
        raise _malformed("a part has a header that is none")
    return name.lower(), value.strip(b" \t")


_CONTROLS = re.compile(rb"[\x00\r\n]")


def _parameters(value: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """A header's value and its parameters, names in lower case; quoted values without quotes and escapes."""
    kind, semicolon, _ = value.partition(b";")
    parameters: list[tuple[bytes, bytes]] = []
    at = len(kind)
    while semicolon and value[at:].strip(b"; \t"):
        match = _PARAMETER.match(value, at)
        if match is None:
            raise _malformed('a header\'s parameters are not `name=value` or `name="value"`')
        quoted = match[2]
        parameters.append((match[1].lower(), match[3] if quoted is None else _ESCAPED.sub(rb"\1", quoted)))
        at = match.end()
    return kind.strip(b" \t").lower(), parameters


def _malformed(what: str) -> MalformedMultipart:
    return MalformedMultipart(f"the request body, which must name a `model`, is not a well-formed form: {what}")


def _no_model(what: str) -> MissingModelField:
    return MissingModelField(f"the form's field `model` {what}", param="model")
