"""Limits: token buckets, concurrency, budgets over windows, and the reservations of live requests."""
