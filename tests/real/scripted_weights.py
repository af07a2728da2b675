"""A GGUF file of a llama that follows a script: it calls one tool, and answers when the result has an expected text.

An untrained model cannot decide to call a tool, so the weights of this one decide it: embeddings are one-hot, attention
and feed-forward are zero, and the output matrix gives each token one successor. The chat template ends the prompt with
the token at which the line to say begins. Everything else is the engine's own work: template, tokenizer, sampling, the
grammar made of the client's tools, and the parser that finds the call in the text. The form of calls is that of Qwen3.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import tiny_model

CONTEXT = 65536
FEED_FORWARD = 32
CERTAIN = 5.0  # times the square root of the width, this is a logit; all others are 0
TITLE = "A title"  # the answer to requests without tools, with which agents name a conversation
FAILURE = "The result is not what I expected."
PIECE = 6  # characters of a token; single bytes are tokens already

# Of a long message the beginning is enough: each byte is a token, and agents' instructions have tens of thousands.
TEMPLATE = """\
{%- set state = namespace(next = '<|call|>' if tools else '<|title|>') %}
{%- if tools %}<|im_start|>system
<tools>{% for tool in tools %}
{{ tool.function.name }}{% endfor %}
</tools><|im_end|>
{% endif %}
{%- for message in messages %}<|im_start|>{{ message.role }}
{% if message.role == 'tool' %}
{%- set state.next = '<|answer|>' if EXPECTED in message.content else '<|failure|>' %}<tool_response>
{{ message.content }}
</tool_response>
{%- else %}{{ (message.content or '')[:500] }}{% endif %}
{%- for call in message.tool_calls or [] %}<tool_call>
{"name": {{ call.function.name | tojson }}, "arguments": {{ call.function.arguments | tojson }}}
</tool_call>{% endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{{ state.next }}{% endif %}"""


def make(path: Path, tool: str, arguments: dict[str, Any], expected: str, answer: str) -> None:
    """Write the model to `path`: it calls `tool`, and says `answer` when a result has the text `expected`."""
    call = f"<tool_call>\n{json.dumps({'name': tool, 'arguments': arguments})}\n</tool_call>"
    lines = {"<|title|>": TITLE, "<|call|>": call, "<|answer|>": answer, "<|failure|>": FAILURE}
    tokens = [*tiny_model.byte_names(), "ab", "<bos>", "<|im_end|>", "<|im_start|>", *lines]
    controls = len(tokens) - 257
    end = tokens.index("<|im_end|>")
    successors = {}
    for start, line in lines.items():
        token = tokens.index(start)
        for piece in _pieces(line, tokens):
            successors[token] = token = len(tokens)
            tokens.append(piece)
        successors[token] = end
    user_defined = len(tokens) - 257 - controls

    writer = gguf.GGUFWriter(str(path), "llama")
    width = -(-len(tokens) // 32) * 32
    writer.add_name("scripted")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(width)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(1)
    writer.add_head_count_kv(1)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(1e-5)
    kinds = [
        (gguf.TokenType.NORMAL, 257),
        (gguf.TokenType.CONTROL, controls),
        (gguf.TokenType.USER_DEFINED, user_defined),
    ]
    tiny_model.add_vocabulary(writer, tokens, [kind for kind, count in kinds for _ in range(count)], end)
    writer.add_chat_template(TEMPLATE.replace("EXPECTED", repr(expected)))
    _add_tensors(writer, len(tokens), width, successors)
    tiny_model.write(writer)


def _pieces(line: str, taken: list[str]) -> list[str]:
    """Cut a line into tokens that differ from each other and from those `taken`. Raises ValueError if it cannot."""
    pieces: list[str] = []
    while line:
        size = PIECE
        while (line[:size] in taken or line[:size] in pieces or 0 < len(line) - size < PIECE) and size < len(line):
            size += 1
        piece, line = line[:size], line[size:]
        if piece in taken or piece in pieces:
            raise ValueError(f"the line repeats its end: {piece!r}")
        pieces.append(piece)
    return pieces


def _add_tensors(writer: gguf.GGUFWriter, tokens: int, width: int, successors: dict[int, int]) -> None:
    output = np.zeros((tokens, width), np.float32)
    for token, successor in successors.items():
        output[successor, token] = CERTAIN
    writer.add_tensor("token_embd.weight", np.eye(tokens, width, dtype=np.float32))
    writer.add_tensor("output.weight", output)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
    shapes = {f"attn_{name}": (width, width) for name in ("q", "k", "v", "output")}
    shapes |= {"ffn_gate": (FEED_FORWARD, width), "ffn_up": (FEED_FORWARD, width), "ffn_down": (width, FEED_FORWARD)}
    for name, shape in shapes.items():
        writer.add_tensor(f"blk.0.{name}.weight", np.zeros(shape, np.float32))
