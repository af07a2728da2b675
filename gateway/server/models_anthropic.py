"""`/v1/models` in the format of Anthropic's API, for clients that send `anthropic-version`. Makes no entries itself."""

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
    """One page of models as JSON. Without `limit` all of them: Anthropic's default of 20 would hide models.

    Args:
        entries: Sorted by id, so that a page can begin after any id, even that of a model that no longer exists.
        query: `limit`, `after_id` and `before_id`, as the client wrote them.

    Raises:
        BadRequest: `limit` is not a whole number from 1 to 1000.
    """
    after, before, limit = query.get("after_id", ""), query.get("before_id"), _limit(query.get("limit"))
    matching = [entry for entry in entries if entry.id > after and (before is None or entry.id < before)]
    page = matching[-limit:] if before is not None else matching[:limit]
    return msgspec.json.encode(
        {
            "data": [_model(entry) for entry in page],
            "has_more": len(page) < len(matching),
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
    )


def _limit(text: str | None) -> int:
    if text is None:
        return LARGEST_PAGE
    if _WHOLE_NUMBER.fullmatch(text) is None or not 1 <= int(text) <= LARGEST_PAGE:
        raise BadRequest(f"`limit` must be a whole number from 1 to {LARGEST_PAGE}", param="limit")
    return int(text)


_WHOLE_NUMBER = re.compile("[0-9]{1,4}")


def single(entry: Entry) -> bytes:
    """The body of `/v1/models/{id}`."""
    return msgspec.json.encode(_model(entry))


def _model(entry: Entry) -> dict[str, Any]:
    """Limits are in tokens, null where unknown. The SDK's type requires `lifecycle`; every listed model is active."""
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
