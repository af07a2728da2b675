"""Loads, evictions, unloads and drains: jobs on neurons that outlive the requests that asked for them.

`scheduler.py` starts every job and is the only entry for others, except operators' requests (`manual.py`, `drain.py`).
Which node and which victims is decided by `fleet/routing/placement.py` and `eviction.py`, which do no I/O.

Read first: `scheduler.py`, then `load.py`, `make_room.py` and `unload.py`.
"""
