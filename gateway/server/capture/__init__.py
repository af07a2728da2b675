"""Captures: the texts of an alias's requests and answers, kept in memory for a while, if an operator starts it.

Belongs here: what is kept and for how long (`capture.py`), reading it off a request as it passes (`capture_app.py`),
its texts (`captured_texts.py`), and its routes (`capture_routes.py`). Does not belong here: anything that a request
needs when no capture runs; then the only cost is one look-up.

Read `capture.py` first.
"""
