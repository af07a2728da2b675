"""Anthropic's Messages API for clients, translated to and from OpenAI chat completions. No I/O, clock or randomness.

Here: reading a Messages request, writing it as a chat completions request, and writing the neuron's answer, stream or
error in Anthropic's format. Not here: anything that several dialects share (`gateway.dialects`), asking a neuron to
count tokens (`gateway.proxy.count_tokens`), and the model list (`gateway.server.models_anthropic`).

Read `dialect` first, then `request` for the way to the neuron and `response` and `stream` for the way back.
"""
