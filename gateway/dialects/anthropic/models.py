"""`/v1/models` in Anthropic's shape, for clients that send `anthropic-version`. What is listed is `models_api`'s."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from gateway.errors import BadRequest
from gateway.server.models_api import Entry

__all__ = ["listing", "single"]


LARGEST_PAGE = 1000


def listing(entries: Sequence[Entry], query: Mapping[str, str]) -> bytes:
    """The page that is asked for, and all on one if none is: Anthropic's own default of 20 would hide models.

    Args:
        entries: Sorted by id, which is what makes an id a place to go on from, even that of a model that is gone.
        query: `limit`, `after_id` and `before_id`, as the client gave them.

    Raises:
        BadRequest: The limit is none.
    """
    after, before, limit = query.get("after_id", ""), query.get("before_id"), _limit(query.get("limit"))
    asked = [entry for entry in entries if entry.id > after and (before is None or entry.id < before)]
    page = asked[-limit:] if before is not None else asked[:limit]
    return msgspec.json.encode(
        {
            "data": [_model(entry) for entry in page],
            "has_more": len(page) < len(asked),
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


def _limit(given: str | None) -> int:
    if given is None:
        return LARGEST_PAGE
    if _WHOLE_NUMBER.fullmatch(given) is None or not 1 <= int(given) <= LARGEST_PAGE:
        raise BadRequest(f"limit: must be a whole number from 1 to {LARGEST_PAGE}", param="limit")
    return int(given)


_WHOLE_NUMBER = re.compile("[0-9]{1,4}")


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
