"""A request's body while it arrives: its memory, its pace and its content coding; and work on large bodies.

`request.py` and `forms/` read bodies and say what is in them; nothing here knows a format. Read `memory` first.
"""
