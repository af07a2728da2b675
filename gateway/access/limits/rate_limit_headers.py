"""The rate-limit headers of answers: OpenAI's names, and Anthropic's on `/v1/messages`. Pure.

OpenAI: https://platform.openai.com/docs/guides/rate-limits ("Rate limits in headers"); a reset is a duration as `6m0s`.
Anthropic: https://docs.anthropic.com/en/api/rate-limits ("Response headers"); a reset is a time as RFC 3339 writes it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import ceil

from gateway.access.limits.key_use import KeyUse
from gateway.asgi import Headers

__all__ = ["anthropic_headers", "openai_headers"]


def openai_headers(use: KeyUse, now: float) -> Headers:
    """`x-ratelimit-…` at `now`, by the clock of the buckets; nothing for a key without limits per minute."""
    headers: Headers = []
    for bucket, names in ((use.requests, _OPENAI_REQUESTS), (use.tokens, _OPENAI_TOKENS)):
        if bucket is not None:
            limit, remaining, reset = names
            headers += (
                (limit, b"%d" % bucket.per_minute),
                (remaining, b"%d" % level if (level := bucket.refill(now)) > 0 else b"0"),
                (reset, _duration(bucket.full_in_s())),
            )
    return headers


def anthropic_headers(use: KeyUse, now: float, unix_now: float) -> Headers:
    """`anthropic-ratelimit-…`; `unix_now` is `now` in unix seconds."""
    headers: Headers = []
    for bucket, names in ((use.requests, _ANTHROPIC_REQUESTS), (use.tokens, _ANTHROPIC_TOKENS)):
        if bucket is not None:
            limit, remaining, reset = names
            level = bucket.refill(now)
            full_at = datetime.fromtimestamp(ceil(unix_now + bucket.full_in_s()), UTC)
            headers += (
                (limit, b"%d" % bucket.per_minute),
                (remaining, b"%d" % level if level > 0 else b"0"),
                (reset, full_at.strftime("%Y-%m-%dT%H:%M:%SZ").encode()),
            )
    return headers


_PARTS = ("limit", "remaining", "reset")
_OPENAI_REQUESTS, _OPENAI_TOKENS = (
    tuple(f"x-ratelimit-{part}-{what}".encode() for part in _PARTS) for what in ("requests", "tokens")
)
_ANTHROPIC_REQUESTS, _ANTHROPIC_TOKENS = (
    tuple(f"anthropic-ratelimit-{what}-{part}".encode() for part in _PARTS) for what in ("requests", "tokens")
)


_NOTHING_S = 1e-9  # what floats leave of a difference


def _duration(seconds: float) -> bytes:
    """A duration as OpenAI writes it: `20ms`, `7s`, `6m0s`, `1h0m0s`. Rounded up, so that it is never too early."""
    if seconds < 1:
        return b"%dms" % -(-seconds * 1000 // 1) if seconds > _NOTHING_S else b"0s"
    whole_s = int(-(-(seconds - _NOTHING_S) // 1))
    hours, minutes = whole_s // 3600, whole_s // 60 % 60
    if hours:
        return b"%dh%dm%ds" % (hours, minutes, whole_s % 60)
    return b"%dm%ds" % (minutes, whole_s % 60) if minutes else b"%ds" % whole_s
