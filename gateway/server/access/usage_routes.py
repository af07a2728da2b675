"""The routes that report usage: that of all keys for operators, and its own for each key."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from quart import Response, request
from quart_trio import QuartTrio

from gateway import errors
from gateway.access.keys.key import Key
from gateway.access.ledger.usage_period import InvalidPeriod, parse_since
from gateway.access.ledger.usage_report import GROUPINGS, UsageQuery, read_usage_report
from gateway.access.limits.limiter import Limiter
from gateway.access.limits.rate_limit_headers import anthropic_headers, openai_headers
from gateway.access.limits.windows import zone_of
from gateway.access.store.database import StoreUnavailable
from gateway.access.store.store import Store
from gateway.asgi import Headers
from gateway.server.quart_app import json_response

__all__ = ["UsageReports", "mount_admin_usage", "mount_own_usage"]

DEFAULT_SINCE = "7d"


@dataclass(frozen=True, slots=True)
class UsageReports:
    """What the routes use: the store, the limiter, and `[ledger] currency` and `timezone`."""

    store: Store
    limiter: Limiter
    currency: str = "USD"
    timezone: str = "UTC"

    def limit_headers(self, key: Key, *, anthropic: bool) -> Headers:
        """What is left of the key's limits per minute; nothing for a key without."""
        use = self.limiter.use_of(key)
        if not use.is_limited_by_rate:
            return []
        now = self.limiter.clock()
        return anthropic_headers(use, now, self.limiter.unix_time()) if anthropic else openai_headers(use, now)

    async def report(self, key: Key | None) -> dict[str, Any]:
        """The report that the current request asks for, of one key or of all.

        Raises:
            BadRequest: A parameter is not understood.
            ServiceUnavailable: The store cannot be read.
        """
        by = request.args.get("by", "key")
        if by not in GROUPINGS:
            raise errors.BadRequest(f"by must be one of {', '.join(GROUPINGS)}", param="by")
        until = time.time()
        try:
            since = parse_since(request.args.get("since", DEFAULT_SINCE), until, zone_of(self.timezone))
        except InvalidPeriod as error:
            raise errors.BadRequest(str(error), param="since") from error
        query = UsageQuery(by, since, until, None if key is None else key.id, self.timezone)
        try:
            rows = await self.store.read(partial(read_usage_report, query=query))
        except StoreUnavailable as error:
            raise errors.ServiceUnavailable(f"the ledger cannot be read now: {error}", retry_after_s=5) from error
        return {"by": by, "since": since, "until": until, "currency": self.currency, "rows": rows}


def mount_admin_usage(app: QuartTrio, reports: UsageReports) -> None:
    """Add the route to the admin application."""

    @app.get("/admin/usage")
    async def usage() -> Response:
        return json_response(await reports.report(None))


def mount_own_usage(app: QuartTrio, reports: UsageReports | None, key_of_request: Callable[[], Key | None]) -> None:
    """Add the route to the public application; without `reports` it answers 503."""

    @app.get("/v1/usage")
    async def own_usage() -> Response:
        key = key_of_request()
        if key is None:
            raise errors.InvalidApiKey("/v1/usage shows the usage of the key that asks: send one")
        if reports is None:
            raise errors.ServiceUnavailable("this gateway has no store")
        return json_response(await reports.report(key) | {"limits": reports.limiter.view(key)["limits"]})
