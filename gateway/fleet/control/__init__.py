"""Control calls to neurons and engines: their types, two clients, and the poller that reports to the fleet.

Not here: when to load or unload (`fleet/loading`) and inference requests (`gateway/proxy`).

Read first: `types.py`, then `poller.py`.
"""
