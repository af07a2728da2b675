"""What the translations of Messages and Responses requests share, beyond `chat_request` and `fields`.

Here: limits on a request's size (`bounds`), engine parameters that pass through a translation (`engine_extras`), the
names of what it leaves out (`ignored`), and the merging of consecutive messages of one role (`alternation`).
Not here: anything about one API's fields, blocks or items.

Read `ignored` first.
"""
