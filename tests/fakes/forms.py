"""Forms for tests: built byte by byte, and read by python-multipart, which most engines use."""

from __future__ import annotations

from dataclasses import dataclass

from python_multipart.multipart import MultipartParser, parse_options_header

BOUNDARY = b"----cortexTestBoundary7MA4YWxk"
CONTENT_TYPE = b"multipart/form-data; boundary=" + BOUNDARY


@dataclass(frozen=True)
class Part:
    """One part as the receiver reads it; `filename` is None for a plain field."""

    name: bytes
    value: bytes
    filename: bytes | None = None


def a_part(name: bytes, value: bytes, more: bytes = b"", headers: bytes = b"") -> bytes:
    """A part from its headers to its content. `more` are parameters, `headers` further lines ended by CRLF."""
    return b'Content-Disposition: form-data; name="%b"%b\r\n%b\r\n%b' % (name, more, headers, value)


def a_file(value: bytes, name: bytes = b"file", filename: bytes = b"speech.wav") -> bytes:
    """A file, as browsers and SDKs send one."""
    return a_part(name, value, b'; filename="%b"' % filename, b"Content-Type: audio/wav\r\n")


def a_form(*parts: bytes, boundary: bytes = BOUNDARY, before: bytes = b"", after: bytes = b"\r\n") -> bytes:
    """The whole body."""
    opened = b"".join(b"--%b\r\n%b\r\n" % (boundary, part) for part in parts)
    return b"%b%b--%b--%b" % (before, opened, boundary, after)


def read_form(body: bytes, boundary: bytes = BOUNDARY) -> list[Part]:
    """The parts, as an engine reads them. Raises python-multipart's exceptions."""
    parts: list[Part] = []
    names: dict[str, bytes] = {"field": b"", "value": b""}
    headers: dict[bytes, bytes] = {}
    content = bytearray()
    ended = False

    def end_header() -> None:
        headers[names["field"].lower()] = names["value"]
        names.update(field=b"", value=b"")

    def begin_part() -> None:
        headers.clear()
        content.clear()

    def end_part() -> None:
        _, options = parse_options_header(headers[b"content-disposition"])
        parts.append(Part(options[b"name"], bytes(content), options.get(b"filename")))

    def end() -> None:
        nonlocal ended
        ended = True

    def gather(key: str):
        def take(data: bytes, start: int, stop: int) -> None:
            names[key] += data[start:stop]

        return take

    def take_content(data: bytes, start: int, stop: int) -> None:
        content.extend(data[start:stop])

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin_part,
            "on_header_field": gather("field"),
            "on_header_value": gather("value"),
            "on_header_end": end_header,
            "on_part_data": take_content,
            "on_part_end": end_part,
            "on_end": end,
        },
    )
    parser.write(body)
    parser.finalize()
    if not ended:
        raise ValueError("the form does not end")
    return parts
