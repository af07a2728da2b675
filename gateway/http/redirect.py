"""Redirects of an upstream: 307 and 308 to its own origin, which repeat the same request elsewhere. No I/O."""

from __future__ import annotations

import re
from collections.abc import Sequence
from urllib.parse import SplitResult, urljoin, urlsplit

from gateway.asgi import Headers

__all__ = ["new_target", "with_target"]

_SAME_REQUEST = frozenset({307, 308})  # all others change the method, or say nothing about it (RFC 9110, section 15.4)
_TARGET = re.compile(r"/[!-~]*")  # printable ASCII without spaces: anything else could end the request line


def new_target(status: int, headers: Headers, message: Sequence[bytes | memoryview], url: str) -> bytes | None:
    """The request target that a response redirects to, within the same origin; None if it must not be followed.

    Args:
        status: The response's.
        headers: The response's.
        message: The request that was sent, beginning with its head.
        url: The origin's scheme and authority, such as `http://beast:8080`.
    """
    if status not in _SAME_REQUEST:
        return None
    locations = [value.decode("latin-1") for name, value in headers if name == b"location"]
    if len(locations) != 1 or not locations[0]:
        return None
    target = bytes(message[0]).split(b" ", 2)[1].decode("latin-1")
    try:
        there, here = urlsplit(urljoin(url + target, locations[0])), urlsplit(url)
        if (there.scheme, there.hostname, _port(there)) != (here.scheme, here.hostname, _port(here)):
            return None
    except ValueError:  # not a URL
        return None
    found = (there.path or "/") + (f"?{there.query}" if there.query else "")
    if _TARGET.fullmatch(found) is None or there.username is not None:
        return None
    return found.encode()


def with_target(message: Sequence[bytes | memoryview], target: bytes) -> tuple[bytes | memoryview, ...]:
    """The same request for another target."""
    method, _, rest = bytes(message[0]).split(b" ", 2)
    return (b" ".join((method, target, rest)), *message[1:])


def _port(parts: SplitResult) -> int:
    return parts.port or (443 if parts.scheme == "https" else 80)
