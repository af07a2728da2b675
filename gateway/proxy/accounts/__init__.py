"""What requests may use, and what they used: reservations, settlement, and entries of the ledger.

Not here: limits, budgets and the ledger themselves (`gateway.access`). Read `request_account.py`.
"""
