"""multipart/form-data read at once; an independent check of the gateway's own parser. No I/O."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_BOUNDARY = re.compile(r'boundary=(?:"([^"]+)"|([^;\s]+))', re.IGNORECASE)
_NAME = re.compile(rb'[;\s]name="((?:[^"\\]|\\.)*)"', re.IGNORECASE)
_FILENAME = re.compile(rb'filename="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Form:
    """Fields by name (the last value wins), and the content of the files in their order."""

    fields: dict[str, str]
    files: tuple[bytes, ...]

    @property
    def file_sha256(self) -> tuple[str, ...]:
        """The SHA-256 of each file, in hex."""
        return tuple(hashlib.sha256(content).hexdigest() for content in self.files)


def parse(content_type: str, body: bytes) -> Form:
    """A form from its body.

    Raises:
        ValueError: It is none.
    """
    found = _BOUNDARY.search(content_type)
    if found is None:
        raise ValueError("no boundary")
    delimiter = b"\r\n--" + (found[1] or found[2]).encode()
    _, *parts = (b"\r\n" + body).split(delimiter)
    if not parts or not parts.pop().startswith(b"--"):
        raise ValueError("no closing boundary")
    fields: dict[str, str] = {}
    files: list[bytes] = []
    for part in parts:
        headers, empty_line, content = part.partition(b"\r\n\r\n")
        name = _NAME.search(headers)
        if not empty_line or name is None:
            raise ValueError("a part without a name")
        if _FILENAME.search(headers) is not None:
            files.append(content)
        else:
            fields[name[1].decode()] = content.decode()
    return Form(fields, tuple(files))
