"""The store: a SQLite or PostgreSQL database behind one worker thread, its tables, and their migrations.

Read `store.py` first. `schema.py` has the tables; `migrations/` brings a database of an earlier release up to them.
"""
