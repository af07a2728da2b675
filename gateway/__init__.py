"""The server: one Trio process in front of a fleet of GPU hosts."""

__version__ = "0.1.0"
