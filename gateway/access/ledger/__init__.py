"""The ledger: one row per request, its cost and energy, daily sums, and queries over them."""
