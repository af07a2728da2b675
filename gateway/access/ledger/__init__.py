"""The ledger: one row per request, its cost and energy, daily sums, and queries over them.

Read `ledger.py` first. Not here: the tables (`access.store`), and what a request used (`proxy.accounts`).
"""
