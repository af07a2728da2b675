"""The store: a SQLite or PostgreSQL database behind one writer thread, and its migrations."""
