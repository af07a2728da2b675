"""One migration per schema version, oldest first. A released one never changes."""
