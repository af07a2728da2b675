"""Which headers pass the gateway: one allow list per direction, each entry with its reason. All others are dropped.

The gateway is the peer of both sides, so a header about one connection or one identity ends here: credentials, cookies,
`origin`, CORS, framing. docs/api.md shows these lists; `[gateway] pass_request_headers` and `pass_headers` extend them,
and `gateway/config/header_names.py` has the names that never pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from gateway.asgi import Headers

__all__ = [
    "TO_CLIENT",
    "TO_CLIENT_PREFIXES",
    "TO_NEURON",
    "TO_NEURON_IN_THE_CLIENTS_DIALECT",
    "for_client",
    "for_neuron",
    "kept_for_neuron",
    "named_by_connection",
]

TO_NEURON: Mapping[str, str] = {
    "accept": "an engine may have several formats of an answer",
    "user-agent": "the engine's log shows which client asked",
    "traceparent": "tracing goes on at the engine (W3C Trace Context)",
    "tracestate": "belongs to `traceparent`",
    "x-session-id": "engines and routers keep a session's prefix cache together by it",
}
"""Besides these the neuron gets `content-type`, `x-request-id` and `accept-encoding`, which the gateway decides."""

TO_NEURON_IN_THE_CLIENTS_DIALECT: Mapping[str, str] = {
    "anthropic-version": "selects the version of the API that the body is written for",
    "anthropic-beta": "switches on features that the body uses",
    "openai-beta": "as `anthropic-beta`",
}
"""Only if the neuron gets the client's own request, not a translation of it."""

TO_CLIENT: Mapping[str, str] = {
    "content-type": "what the body is",
    "content-disposition": "the file name of sound and pictures",
    "content-encoding": "only with a body that passes unread; a body that is read is decoded",
    "retry-after": "when to come back",
    "retry-after-ms": "the same in milliseconds, which OpenAI's SDKs prefer",
    "x-should-retry": "whether OpenAI's and Anthropic's SDKs retry",
    "openai-processing-ms": "how long the engine took",
    "server-timing": "how long the engine took; the gateway adds its own",
}

TO_CLIENT_PREFIXES: Mapping[str, str] = {
    "x-ratelimit-": "what is left of the engine's rate limits",
    "anthropic-ratelimit-": "the same in Anthropic's names",
}

_IS_JSON = (b"content-type", b"application/json")
_IDENTITY = (b"accept-encoding", b"identity")  # the gateway reads usage and model names in answers
_ALWAYS = frozenset(name.encode() for name in TO_NEURON)
_OWN_DIALECT = _ALWAYS | {name.encode() for name in TO_NEURON_IN_THE_CLIENTS_DIALECT}
_TO_CLIENT = frozenset(name.encode() for name in TO_CLIENT)
_WITH_LENGTH = _TO_CLIENT | {b"content-length"}
_TO_CLIENT_PREFIXES = tuple(prefix.encode() for prefix in TO_CLIENT_PREFIXES)


def for_neuron(
    headers: Headers, request_id: str, *, form_type: bytes | None, in_clients_dialect: bool, also: tuple[str, ...]
) -> Headers:
    """The headers of an outgoing request; `host`, framing and the engine's credentials are added where it is sent.

    Args:
        headers: The client's.
        request_id: The request's id.
        form_type: The content type of a form, with its boundary; None for JSON.
        in_clients_dialect: The neuron gets the client's request, not a translation.
        also: `[gateway] pass_request_headers`.
    """
    kept = kept_for_neuron(headers, form_type, in_clients_dialect=in_clients_dialect, also=also)
    return [*kept, (b"x-request-id", request_id.encode())]


def kept_for_neuron(
    headers: Headers, form_type: bytes | None, *, in_clients_dialect: bool, also: tuple[str, ...]
) -> Headers:
    """Those of `for_neuron` that are the same for every request with the same head."""
    allowed = _OWN_DIALECT if in_clients_dialect else _ALWAYS
    if also:
        allowed = _extended(allowed, also)
    kept = [header for header in headers if header[0] in allowed]
    if kept and (named := named_by_connection(headers)):
        kept = [header for header in kept if header[0] not in named]
    kept += (_IS_JSON if form_type is None else (b"content-type", form_type), _IDENTITY)
    return kept


def for_client(
    headers: Headers, also: tuple[str, ...], *, own_limits: bool = False, same_length: bool = False
) -> Headers:
    """Those of a neuron's response headers that its client gets, whatever the status.

    Args:
        headers: The neuron's. They have a `content-encoding` only if the body passes as it is.
        also: `[gateway] pass_headers`.
        own_limits: The gateway's own rate-limit headers take the place of the neuron's.
        same_length: The body passes byte for byte, so its `content-length` holds.
    """
    allowed = _WITH_LENGTH if same_length else _TO_CLIENT
    if also:
        allowed = _extended(allowed, also)
    prefixes = () if own_limits else _TO_CLIENT_PREFIXES
    kept = [header for header in headers if header[0] in allowed or header[0].startswith(prefixes)]
    if kept and (named := named_by_connection(headers)):
        kept = [header for header in kept if header[0] not in named]
    return kept


@lru_cache(maxsize=8)  # two lists per gateway, in two variants
def _extended(allowed: frozenset[bytes], also: tuple[str, ...]) -> frozenset[bytes]:
    return allowed | {name.encode() for name in also}


def named_by_connection(headers: Headers) -> frozenset[bytes]:
    """The headers that `connection` declares to be for this hop (RFC 9110, section 7.6.1), in lower case."""
    named: frozenset[bytes] = frozenset()
    for name, value in headers:
        if name == b"connection":
            named |= {token.strip().lower() for token in value.split(b",")}
    return named
