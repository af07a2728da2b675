"""Translations between API dialects: pure functions and stream state machines, no I/O."""
