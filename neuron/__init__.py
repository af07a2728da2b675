"""The daemon on a GPU host (`agent`), and its API without a GPU (`simulated`), for the demo, the bench and tests.

Here: what runs on a GPU host. Not here: the gateway, of which this package imports nothing but `gateway.http`, with the
types and errors in its signatures. Read `agent/serve.py` first.
"""
