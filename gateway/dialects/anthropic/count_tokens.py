"""What `/v1/messages/count_tokens` answers: a number, and a header where it is only an estimate (`dialects.tokens`)."""

from __future__ import annotations

import msgspec

__all__ = ["ESTIMATE_HEADER", "body"]

ESTIMATE_HEADER = (b"x-cortex-token-count", b"estimate")
"""To go with a count that is ours and not the neuron's (contract section 7)."""


def body(input_tokens: int) -> bytes:
    """The answer of `/v1/messages/count_tokens`."""
    return msgspec.json.encode({"input_tokens": input_tokens})
