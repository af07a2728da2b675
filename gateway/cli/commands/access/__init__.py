"""Commands about keys and the store: `key.py`, `store.py`.

What they print is in `gateway.cli.views`; where the keys are, on this host or behind a gateway, in
`gateway.cli.source.keys`.
"""
