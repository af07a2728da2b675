"""Limits: token buckets, concurrency, budgets over windows, and the reservations of live requests.

Read `limiter.py` first. Not here: keys (`access.keys`), and when a request reserves and settles (`proxy.accounts`).
"""
