"""Answers of engines that speak Messages or Responses themselves: passed as they are, or converted to the other form.

An engine may answer a streaming request with one JSON object, or a plain one with a stream. The client gets the form
that it asked for; every other answer keeps its bytes.

    native_answer       the `Translation` of such an answer, for either dialect
    message_form        a Messages stream put together, and a message as a stream
    response_form       the same for Responses

Not here: chat completions (`chat.assemble`), and anything that changes what an answer says.

Read `native_answer` first.
"""
