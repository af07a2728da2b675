"""Large request bodies, which are large because of pictures: read without the pictures, and changed without a copy.

    outline         the body without its long runs of base64, for parsers
    spliced_body    the body with some values replaced, as pieces to be sent

Not here: what a body means (`json_splice` and the dialects), and when to let other tasks run (`gateway.proxy.body`).
"""
