"""What the translations of Messages and Responses requests share, beyond `chat_request` and `fields`.

Here: limits on a body's size (`bounds`), the reading of requests, large ones in slices (`slices`), engine parameters
that pass through a translation (`engine_extras`), the names of what it leaves out (`ignored`), and the merging of
consecutive messages of one role (`alternation`).
Not here: anything about one API's fields, blocks or items.

Read `ignored` first.
"""
