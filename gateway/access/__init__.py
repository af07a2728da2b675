"""Access to the gateway: keys, what each may use, its limits and budgets, and the ledger of what was used.

SQL is nowhere else. This package knows no record of a request and no dialect: the proxy hands it plain values.
Read `keys/key.py` first.
"""
