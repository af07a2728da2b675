"""The console: the pages for operators on the admin port, the session of a browser, and the events that pages follow.

Belongs here: serving the pages (`assets.py`, files in `static/`), signing in (`sessions.py`, `session_routes.py`), the
live events (`event_feed.py`, `event_sources.py`, `event_stream.py`), the figures of the last hour (`figures.py`), and
the page that the public port shows to a browser (`public_page.py`).
Does not belong here: the admin API itself, which pages use as every other client does.

Read `admin_port.py` first.
"""
