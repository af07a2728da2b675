"""Loads, evictions, unloads and drains: jobs on neurons that outlive the requests that asked for them.

`scheduler.py` starts every job and is the only entry for others, except operators' requests (`manual.py`, `drain.py`).
Which node, devices and victims is decided by `eviction.py` and, in `fleet/routing`, `placement.py` and `victims.py`,
which do no I/O. `imagined_fleet.py` applies these rules to a copy of the fleet, for drains and plans.

Read first: `scheduler.py`, then `load.py`, `make_room.py` and `unload.py`.
"""
