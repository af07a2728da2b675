"""Where a request goes: the choice of a replica or of a node for a load, the queue for full models, notes on decisions.

Everything here decides synchronously on the fleet as it is and does no I/O. Carrying a decision out is the work of
`gateway/proxy` (requests) and `fleet/loading` (loads).

Read first: `choose.py`, then `placement.py` (nodes and devices), `victims.py` (evictions) and `queue.py`.
"""
