"""The rate-limit headers of answers: OpenAI's names, and Anthropic's on `/v1/messages`. Pure.

OpenAI: https://platform.openai.com/docs/guides/rate-limits ("Rate limits in headers"); a reset is a duration as `6m0s`.
Anthropic: https://docs.anthropic.com/en/api/rate-limits ("Response headers"); a reset is a time as RFC 3339 writes it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from math import ceil

from gateway.access.limits.key_use import KeyUse
from gateway.asgi import Headers

__all__ = ["anthropic_headers", "openai_headers", "openai_lines"]


def openai_headers(use: KeyUse, now: float) -> Headers:
    """`x-ratelimit-…` at `now`, by the clock of the buckets; nothing for a key without limits per minute."""
    headers: Headers = []
    for bucket, (limit, remaining, reset) in ((use.requests, _OPENAI_REQUESTS), (use.tokens, _OPENAI_TOKENS)):
        if bucket is not None:
            level, full_in_s = bucket.reading(now)
            headers += ((limit, bucket.per_minute_text), (remaining, b"%d" % level), (reset, _reset(full_in_s)))
    return headers


def openai_lines(use: KeyUse, now: float) -> bytes:
    """The same as lines, each with its line end, and formatted in one step for a key with both limits."""
    requests, tokens = use.requests, use.tokens
    if requests is None or tokens is None:
        return b"".join([b"%b: %b\r\n" % header for header in openai_headers(use, now)])
    # As `TokenBucket.reading`, without calls and tuples.
    level = size = requests.size
    reset = token_reset = b"0s"
    token_level = token_size = tokens.size
    if (now_level := requests.level + (now - requests.at) * requests.per_s) < size:
        level = now_level if now_level > 0 else 0.0
        reset = _reset((size - now_level) / requests.per_s)
    if (now_level := tokens.level + (now - tokens.at) * tokens.per_s) < token_size:
        token_level = now_level if now_level > 0 else 0.0
        token_reset = _reset((token_size - now_level) / tokens.per_s)
    return _OPENAI_LINES % (
        requests.per_minute_text,
        level,
        reset,
        tokens.per_minute_text,
        token_level,
        token_reset,
    )


def anthropic_headers(use: KeyUse, now: float, unix_now: float) -> Headers:
    """`anthropic-ratelimit-…`; `unix_now` is `now` in unix seconds."""
    headers: Headers = []
    for bucket, (limit, remaining, reset) in ((use.requests, _ANTHROPIC_REQUESTS), (use.tokens, _ANTHROPIC_TOKENS)):
        if bucket is not None:
            level, full_in_s = bucket.reading(now)
            full_at = _rfc3339(ceil(unix_now + full_in_s))
            headers += ((limit, bucket.per_minute_text), (remaining, b"%d" % level), (reset, full_at))
    return headers


_PARTS = ("limit", "remaining", "reset")
_OPENAI_REQUESTS, _OPENAI_TOKENS = (
    tuple(f"x-ratelimit-{part}-{what}".encode() for part in _PARTS) for what in ("requests", "tokens")
)
_OPENAI_LINES = b"".join([b"%b: %%b\r\n%b: %%d\r\n%b: %%b\r\n" % names for names in (_OPENAI_REQUESTS, _OPENAI_TOKENS)])
_ANTHROPIC_REQUESTS, _ANTHROPIC_TOKENS = (
    tuple(f"anthropic-ratelimit-{what}-{part}".encode() for part in _PARTS) for what in ("requests", "tokens")
)


_NOTHING_S = 1e-9  # what floats leave of a difference
_NOTHING_MS = _NOTHING_S * 1000
_MILLISECONDS = (b"0s", *(b"%dms" % milliseconds for milliseconds in range(1, 1001)))


def _reset(seconds: float) -> bytes:
    """A duration as OpenAI writes it: `20ms`, `7s`, `6m0s`, `1h0m0s`. Rounded up, so that it is never too early."""
    if seconds < 1:
        return _MILLISECONDS[ceil(seconds * 1000 - _NOTHING_MS)]
    whole_s = ceil(seconds - _NOTHING_S)
    hours, minutes = whole_s // 3600, whole_s // 60 % 60
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, whole_s % 60)
    return b"%dm%ds" % (minutes, whole_s % 60) if minutes else b"%ds" % whole_s


@lru_cache(maxsize=256)  # the next minutes; formatting takes 3 us
def _rfc3339(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
