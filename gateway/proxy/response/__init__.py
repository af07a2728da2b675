"""The response that a client receives: its state, its headers, keep-alives while the upstream is silent.

Here: everything that writes to one client or watches it. Not here: the upstream, which is `proxy/relay.py`'s. Read
`client_response.py` first.
"""
