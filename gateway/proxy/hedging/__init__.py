"""Hedged requests: if the first replica has no token in time, a second one gets the request; the faster one answers.

Here: when to hedge and what it may cost (`hedge_policy.py`), and how two attempts race (`hedge_race.py`). Not here:
sending and relaying, which is `proxy/attempt.py` for both attempts. Read `hedged_attempt.py` first; the reasons are in
docs/decisions/0009-hedging.md.
"""
