"""Chat completions as engines really send them: what their ends mean, and their chunks put together.

    assemble            a whole answer from a stream, and a stream from a whole answer
    pass_through        what is changed in the answers of engines that pass through
    answer_id           ids that the gateway makes up
    finish_reasons      what a `finish_reason` means
    chunk_reader        the chunks of a stream for a translator, with characters that were cut in two put together

Not here: the types of chunks (`dialects/chat_chunks.py`), and the formats of other dialects.
"""
