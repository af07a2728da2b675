"""`/v1/models` in Anthropic's shape, for clients that send `anthropic-version`. What is listed is `models_api`'s."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.models_api import Entry

__all__ = ["listing", "single"]


def listing(entries: Sequence[Entry]) -> bytes:
    """Every entry, on one page, in the order given."""
    return msgspec.json.encode(
        {
            "data": [_model(entry) for entry in entries],
            "has_more": False,
            "first_id": entries[0].id if entries else None,
            "last_id": entries[-1].id if entries else None,
        }
    )


def single(entry: Entry) -> bytes:
    """One entry, for `/v1/models/{id}`."""
    return msgspec.json.encode(_model(entry))


def _model(entry: Entry) -> dict[str, Any]:
    """Limits in tokens, null where unknown. `lifecycle` is required by the SDK's type; what is listed is active."""
    limit = {} if entry.limit is msgspec.UNSET else entry.limit
    return {
        "type": "model",
        "id": entry.id,
        "display_name": entry.id,
        "created_at": datetime.fromtimestamp(entry.created, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "max_input_tokens": limit.get("input", limit.get("context")),
        "max_tokens": limit.get("output"),
    }
