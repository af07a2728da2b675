"""Alembic's environment (`env.py`) and the migrations of the store, one file per schema version in `versions/`."""
