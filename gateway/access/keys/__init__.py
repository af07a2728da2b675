"""Keys: their secrets, their scopes and verbs, and the table of them that requests are checked against.

Read `key.py` first. Not here: limits on use (`access.limits`), and HTTP (`server.access`).
"""
