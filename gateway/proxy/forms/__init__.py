"""multipart/form-data requests: finding the `model` field in a form that is sent on while it arrives.

    upload        reads the client's form, keeps or passes on its bytes, replaces the model's name
    form_parser   finds the `model` field, and rejects forms that parsers could read in different ways; no I/O
    spool         bytes that are kept for later: a little in memory, the rest in a file

    form_request  a request with such a body: opens the upload, dispatches, reads the rest meanwhile

Read `form_request` first. `proxy/attempt.py` sends an upload. docs/api.md, section Forms, says what is promised.
"""
