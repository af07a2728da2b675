"""What `/health` reports: the status, the problems, and the aliases. Read `body.py` first.

Belongs here: finding out what is wrong or cannot be served, from the state of the other parts. Does not belong here:
that state itself, and HTTP.
"""
