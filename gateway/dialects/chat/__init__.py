"""Chat completions as engines really send them: what their ends mean, and their chunks put together.

    finish_reasons      what a `finish_reason` means
    chunk_reader        the chunks of a stream for a translator, with characters that were cut in two put together

Not here: the types of chunks (`dialects/chat_chunks.py`), and the formats of other dialects.
"""
