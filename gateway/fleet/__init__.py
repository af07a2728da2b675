"""The neurons: what they have, which of them serves a request, and which models they load and unload.

`state.py` holds the facts about all nodes, synchronously and without I/O. `control/` calls the neurons, `routing/`
chooses a node for a request and queues requests, `loading/` loads, evicts and drains. Requests are sent by
`gateway/proxy`; only their bytes are built here (`neuron_request.py`). Nothing here knows a dialect, metrics or an
alias.

Read first: `node.py`, then `state.py`, then `routing/choose.py`.
"""
