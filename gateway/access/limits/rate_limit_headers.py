"""The rate-limit headers of answers: OpenAI's names, and Anthropic's on `/v1/messages`. Pure.

OpenAI: https://platform.openai.com/docs/guides/rate-limits ("Rate limits in headers"); a reset is a duration as `6m0s`.
Anthropic: https://docs.anthropic.com/en/api/rate-limits ("Response headers"); a reset is a time as RFC 3339 writes it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from math import ceil

from gateway.access.limits.key_use import KeyUse
from gateway.access.limits.token_bucket import ROUNDING_S
from gateway.asgi import Headers

__all__ = ["anthropic_headers", "openai_headers", "openai_lines"]


def openai_headers(use: KeyUse, now: float) -> Headers:
    """`x-ratelimit-…` at `now`, by the clock of the buckets; nothing for a key without limits per minute."""
    headers: Headers = []
    for bucket, (limit, remaining, reset) in ((use.requests, _OPENAI_REQUESTS), (use.tokens, _OPENAI_TOKENS)):
        if bucket is not None:
            level, full_in_s = bucket.reading(now)
            headers += (
                (limit, bucket.per_minute_text),
                (remaining, b"%d" % level),
                (reset, _reset(full_in_s)),
            )
    return headers


def openai_lines(use: KeyUse, now: float) -> bytes:
    """The same as lines, each with its line end, and formatted in one step for a key with both limits."""
    requests, tokens = use.requests, use.tokens
    if requests is None or tokens is None:
        return b"".join([b"%b: %b\r\n" % header for header in openai_headers(use, now)])
    # As `TokenBucket.reading`, without calls and tuples.
    left, token_left, reset, token_reset, due = requests.size, tokens.size, b"0s", b"0s", now + ROUNDING_S
    if (full_in_s := requests.full_at - due) > 0:
        left -= full_in_s / requests.each_s
        reset = _reset(full_in_s)
    if (full_in_s := tokens.full_at - due) > 0:
        token_left -= full_in_s / tokens.each_s
        token_reset = _reset(full_in_s)
    return _OPENAI_LINES % (
        requests.per_minute_text,
        left if left > 0 else 0.0,
        reset,
        tokens.per_minute_text,
        token_left if token_left > 0 else 0.0,
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


_MILLISECONDS = (b"0s", *(b"%dms" % milliseconds for milliseconds in range(1, 1001)))


def _reset(seconds: float) -> bytes:
    """A duration as OpenAI writes it: `20ms`, `7s`, `6m0s`, `1h0m0s`. Rounded up, so that it is never too early."""
    if seconds < 1:
        return _MILLISECONDS[ceil(seconds * 1000)]
    whole_s = ceil(seconds)
    hours, minutes = whole_s // 3600, whole_s // 60 % 60
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, whole_s % 60)
    return b"%dm%ds" % (minutes, whole_s % 60) if minutes else b"%ds" % whole_s


@lru_cache(maxsize=256)  # the next minutes; formatting takes 3 us
def _rfc3339(second: int) -> bytes:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%SZ").encode()
