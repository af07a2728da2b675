"""The daemon on a GPU host, and its simulation."""
