"""Which headers an operator may add to the allow lists of `gateway/proxy/header_policy.py`, and which never pass."""

from __future__ import annotations

import re

from catalogue.toml.types import Name, invalid, parsed_from

__all__ = ["PASSED_TO_CLIENTS", "PASSED_TO_NEURONS"]

_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]+")  # RFC 9110, section 5.6.2, without `*`: there are no wildcards here

_FRAMING = frozenset({
    "connection", "content-length", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade",
})  # fmt: skip
_NEVER_TO_NEURONS = _FRAMING | {
    "accept-encoding", "api-key", "authorization", "content-encoding", "content-type", "cookie", "expect", "forwarded",
    "host", "origin", "referer", "x-api-key", "x-goog-api-key", "x-request-deadline-ms", "x-request-id",
}  # fmt: skip
_NEVER_TO_NEURONS_PREFIXES = ("proxy-", "sec-", "x-cortex-", "x-forwarded-", "x-helexa-")
_NEVER_TO_CLIENTS = _FRAMING | {
    "allow", "alt-svc", "content-encoding", "date", "request-id", "server", "set-cookie", "set-cookie2",
    "strict-transport-security", "vary", "www-authenticate", "x-request-id",
}  # fmt: skip
_NEVER_TO_CLIENTS_PREFIXES = ("access-control-", "proxy-", "x-cortex-")


def _to_neurons(name: str) -> str:
    lower = _header_name(name)
    if lower in _NEVER_TO_NEURONS or lower.startswith(_NEVER_TO_NEURONS_PREFIXES):
        raise invalid("is a header that never passes to neurons", "it belongs to this hop, or identifies the client")
    return lower


def _to_clients(name: str) -> str:
    lower = _header_name(name)
    if lower in _NEVER_TO_CLIENTS or lower.startswith(_NEVER_TO_CLIENTS_PREFIXES):
        raise invalid("is a header that never passes to clients", "the gateway decides about it itself")
    return lower


def _header_name(name: str) -> str:
    if _TOKEN.fullmatch(name) is None:
        raise invalid("is not a header name", 'write one name, for example "x-tenant"; there are no wildcards')
    return name.lower()


PASSED_TO_NEURONS = parsed_from(Name, _to_neurons)
PASSED_TO_CLIENTS = parsed_from(Name, _to_clients)
