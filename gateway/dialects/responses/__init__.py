"""OpenAI's Responses API for clients, translated to and from chat completions. No I/O, clock or randomness.

Here: reading a Responses request, writing it as a chat completions request, and writing the neuron's answer, stream or
error in the format of the Responses API. Not here: anything that several dialects share (`gateway.dialects`).

Read `dialect` first, then `request`, `conversation` and `tools` for the way to the neuron, and `response` and `stream`
for the way back.
"""
