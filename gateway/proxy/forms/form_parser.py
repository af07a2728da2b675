"""Finds the `model` field in a multipart/form-data body while it passes, and checks the whole form. No I/O.

The format is RFC 7578 over RFC 2046, section 5.1. A form may be hundreds of megabytes, so the parser keeps only the
headers of the current part and the two fields it reads. It rejects a form that two parsers could read differently:
otherwise a client could be routed by one model and served by another.

Why not python-multipart: docs/decisions/0011-form-parser.md. The tests compare the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from gateway.errors import MalformedMultipart, MissingModelField

__all__ = ["FormLimits", "FormParser", "ModelPart", "boundary_of"]


class ModelPart(NamedTuple):
    """The field `model`: its value, and the byte offsets of the value in the body."""

    name: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class FormLimits:
    """Limits on what a client can send beside files."""

    parts: int = 1000  # as Starlette, and so as most engines
    header_bytes: int = 8192  # of one part; python-multipart, which Starlette uses, allows eight headers of 4224
    field_bytes: int = 1024  # of `model`; some engines use a path as the model's name
    around_bytes: int = 8192  # of the preamble, of the epilogue, and of the padding of a boundary line


def boundary_of(content_type: bytes) -> bytes:
    """Return the boundary of a `multipart/form-data` content type.

    Raises:
        MalformedMultipart: There is none or more than one, or RFC 2046 does not allow it.
    """
    _, parameters = _parameters(content_type)
    boundaries = [value for name, value in parameters if name == b"boundary"]
    if len(boundaries) != 1 or _BOUNDARY.fullmatch(boundaries[0]) is None:
        raise _malformed("its content-type must have one boundary of 1 to 70 characters (RFC 2046, section 5.1.1)")
    return boundaries[0]


class FormParser:
    """Takes the body in pieces (`feed`); `model` is set once that field is complete; `finish` checks the form's end.

    Args:
        boundary: From `boundary_of`.
        limits: None for the defaults.
    """

    __slots__ = (
        "_buffer",
        "_buffer_at",
        "_content_at",
        "_delimiter",
        "_field",
        "_limits",
        "_parts",
        "_state",
        "model",
        "stream",
    )

    def __init__(self, boundary: bytes, limits: FormLimits | None = None) -> None:
        self._delimiter = b"--" + boundary
        self._limits = limits or FormLimits()
        # A boundary follows a CRLF, except at the start of the body. So the parser puts a CRLF before the body.
        self._buffer = b"\r\n"
        self._buffer_at = -2  # offset of the buffer's first byte in the body
        self._content_at = -2  # offset of the content that is being scanned
        self._parts = 0
        self._field: bytes | None = None  # name of the current part, if it is `model` or `stream`
        self._state: Callable[[FormParser], bool] = FormParser._read_preamble
        self.model: ModelPart | None = None
        self.stream = False  # whether a field `stream` with a true value has passed

    def feed(self, data: bytes) -> None:
        """Parse the next piece of the body. After an exception the parser cannot be used again.

        Raises:
            MalformedMultipart: The body is not a form, or parsers could read it differently.
            MissingModelField: `model` occurs twice, is a file, is empty, or is too long.
        """
        self._buffer += data
        while self._state(self):
            pass

    def finish(self) -> ModelPart:
        """Check that the form is complete, and return its `model`.

        Raises:
            MalformedMultipart: The form ends before its closing boundary.
            MissingModelField: The form has no field `model`.
        """
        if self._state is FormParser._read_boundary_line and self._buffer.startswith(b"--"):
            self._buffer += b"\r\n"  # the line end after the closing boundary is optional
            self._read_boundary_line()
        if self._state is not FormParser._read_epilogue:
            raise _malformed("it ends before its closing boundary")
        if self.model is None:
            raise MissingModelField(
                "the form has no field `model`: name a model or an alias from /v1/models", param="model"
            )
        return self.model

    # States. A state returns True after it has read something, and False when it needs more bytes ....................

    def _read_preamble(self) -> bool:
        return self._scan()

    def _read_boundary_line(self) -> bool:
        """Read what follows `--boundary`: the end of the line, or `--` (the form's end) and the end of the line."""
        line, end, _ = self._buffer.partition(b"\n")
        self._check_header_size(self._limits.around_bytes, len(line))
        if not end:
            return False
        if not line.endswith(b"\r"):
            raise _malformed(_ON_A_LINE_OF_ITS_OWN)
        closing = line.startswith(b"--")
        if line[2 if closing else 0 : -1].strip(b" \t"):
            raise _malformed("a line begins with its boundary and goes on after it")
        self._drop(len(line) - 1)
        self._state = FormParser._read_epilogue if closing else FormParser._read_headers
        self._content_at = self._buffer_at
        return True

    def _read_headers(self) -> bool:
        """Read a part's headers, from the line end before them to the empty line after them."""
        end = self._buffer.find(b"\r\n\r\n")
        self._check_header_size(self._limits.header_bytes, len(self._buffer) if end < 0 else end)
        if end < 0:
            return False
        self._parts += 1
        if self._parts > self._limits.parts:
            raise _malformed(f"it has more than {self._limits.parts} parts")
        self._field = self._field_of(self._buffer[2:end])
        self._drop(end + 2)  # keep the empty line's CRLF: `_end_content` checks what precedes a boundary
        self._content_at = self._buffer_at + 2
        self._state = FormParser._read_content
        return True

    def _read_content(self) -> bool:
        return self._scan()

    def _read_epilogue(self) -> bool:
        return self._scan()

    # Content ..........................................................................................................

    def _scan(self) -> bool:
        """Skip to the end of the next boundary. Content is dropped, except that of the two fields."""
        found = self._buffer.find(self._delimiter)
        while found >= 0:
            before = self._buffer[max(found - 2, 0) : found]
            if before.endswith((b"\n", b"\r")):
                self._end_content(found, before)
                return True
            found = self._buffer.find(self._delimiter, found + 1)
        self._drop_content()
        return False

    def _end_content(self, found: int, before: bytes) -> None:
        """A line begins with the boundary.

        Some parsers also accept a boundary after a bare CR or LF, or directly after the empty line that ends a part's
        headers; others read it as content there.
        """
        if before != b"\r\n" or self._buffer_at + found - 2 < self._content_at:
            raise _malformed(_ON_A_LINE_OF_ITS_OWN)
        if self._state is FormParser._read_epilogue:
            raise _malformed("its boundary occurs again after the closing one")
        if self._field is not None:
            self._read_field(self._buffer[self._content_at - self._buffer_at : found - 2])
        self._check_size_around(found)
        self._drop(found + len(self._delimiter))
        self._state = FormParser._read_boundary_line

    def _drop_content(self) -> None:
        """Drop the buffer, except for bytes at its end that may begin a boundary."""
        if self._field is not None:
            self._check_field_size(len(self._buffer) - len(self._delimiter) - 4)
            return
        self._check_size_around(len(self._buffer))
        self._drop(max(len(self._buffer) - len(self._delimiter) - 1, 0))  # all but one byte of CRLF and a boundary

    def _check_size_around(self, up_to: int) -> None:
        size = self._buffer_at + up_to - self._content_at
        if size > self._limits.around_bytes and self._state is not FormParser._read_content:
            raise _malformed(
                f"it has more than {self._limits.around_bytes} bytes before its first or after its last part"
            )

    def _check_field_size(self, size: int) -> None:
        if size <= self._limits.field_bytes:
            return
        if self._field == b"model":
            raise _no_model(f"is longer than {self._limits.field_bytes} bytes")
        self._field = None  # no true value of `stream` is that long

    def _read_field(self, value: bytes) -> None:
        """The content of `model` or `stream` is complete."""
        self._check_field_size(len(value))
        if self._field == b"model":
            try:
                name = value.decode()
            except UnicodeDecodeError:
                raise _malformed("its field `model` is not UTF-8") from None
            if not name:
                raise _no_model("is empty: name a model or an alias from /v1/models")
            self.model = ModelPart(name, self._content_at, self._content_at + len(value))
        elif self._field == b"stream":
            self.stream = self.stream or value.strip().lower() in _TRUE
        self._field = None

    def _drop(self, count: int) -> None:
        self._buffer = self._buffer[count:]
        self._buffer_at += count

    def _check_header_size(self, limit_bytes: int, size: int) -> None:
        if size > limit_bytes:
            raise _malformed(f"the headers of a part, or a boundary line, are longer than {limit_bytes} bytes")

    # Headers ..........................................................................................................

    def _field_of(self, block: bytes) -> bytes | None:
        """Check a part's headers; return its name if it is one of the two fields."""
        headers = [_header(line) for line in block.split(b"\r\n")] if block else []
        dispositions = [value for name, value in headers if name == b"content-disposition"]
        if len(dispositions) != 1:
            raise _malformed("each part must have one Content-Disposition header (RFC 7578, section 4.2)")
        kind, parameters = _parameters(dispositions[0])
        names = [(name, value) for name, value in parameters if name == b"name" or name.startswith(b"name*")]
        if kind != b"form-data" or [name for name, _ in names] != [b"name"]:
            raise _malformed("each part must have `Content-Disposition: form-data` with one plain `name`")
        field = names[0][1]
        if field != b"model":
            return field if field == b"stream" else None
        if self.model is not None:
            raise _no_model("occurs twice: send it once")
        if any(name.startswith(b"filename") for name, _ in parameters):
            raise _no_model("must be a plain field, not a file")
        if any(name == b"content-transfer-encoding" and value.lower() not in _IDENTITY for name, value in headers):
            raise _malformed("its field `model` has a Content-Transfer-Encoding (RFC 7578, section 4.7)")
        return b"model"


_ON_A_LINE_OF_ITS_OWN = "each boundary must be on a line of its own, between CRLFs"
_TRUE = frozenset({b"true", b"1", b"yes", b"on", b"t", b"y"})  # what pydantic accepts as true in a form
_IDENTITY = frozenset({b"7bit", b"8bit", b"binary"})
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_BOUNDARY = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_PARAMETER = re.compile(rb'[ \t]*;[ \t]*([^\s;="]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]+))[ \t]*')
_ESCAPED = re.compile(rb"\\(.)")
_CONTROLS = re.compile(rb"[\x00\r\n]")


def _header(line: bytes) -> tuple[bytes, bytes]:
    """Return one header, its name in lower case. Rejects folded headers, because not all parsers unfold them."""
    name, colon, value = line.partition(b":")
    if not colon or _TOKEN.fullmatch(name) is None or _CONTROLS.search(value) is not None:
        raise _malformed("a part has an invalid header line")
    return name.lower(), value.strip(b" \t")


def _parameters(value: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    """Return a header's value and its parameters: names in lower case, values without quotes and escapes."""
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
    return MalformedMultipart(f"the request body, which must name a `model`, is not a valid form: {what}")


def _no_model(what: str) -> MissingModelField:
    return MissingModelField(f"the form's field `model` {what}", param="model")
