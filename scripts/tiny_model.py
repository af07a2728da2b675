"""A GGUF file of an untrained llama: valid for an engine, made in a moment; its output is noise.

The vocabulary is GPT-2's 256 bytes, so that every text has tokens and every token is one byte; the weights are random
and always the same. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; tensor names as in `gguf`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np


@dataclass(frozen=True)
class Shape:
    """The size of a model."""

    width: int
    layers: int
    heads: int
    feed_forward: int


TINY = Shape(width=64, layers=2, heads=4, feed_forward=128)  # 115,392 parameters: a file of 500 kB
SMALL = Shape(width=128, layers=4, heads=4, feed_forward=416)  # 1 million
LARGE = Shape(width=512, layers=9, heads=8, feed_forward=1408)  # 29 million
WIDTH = TINY.width
CONTEXT = 65536  # so that a test can disconnect in the middle of an answer
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def make(path: Path, shape: Shape = TINY) -> None:
    """Write a model of this shape to `path`."""
    writer = gguf.GGUFWriter(str(path), "llama")
    _describe(writer, shape)
    tokens = [*byte_names(), "ab", "<bos>", "<eos>"]
    types = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2
    add_vocabulary(writer, tokens, types, eos=258)
    writer.add_chat_template(TEMPLATE)
    _add_tensors(writer, shape)
    write(writer)


def write(writer: gguf.GGUFWriter) -> None:
    """Write the whole file, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter, shape: Shape) -> None:
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_rope_dimension_count(shape.width // shape.heads)
    writer.add_layer_norm_rms_eps(1e-5)


def add_vocabulary(writer: gguf.GGUFWriter, tokens: list[str], types: list[gguf.TokenType], eos: int) -> None:
    """Describe a vocabulary that begins with `byte_names()`, "ab" and "<bos>"."""
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(["a b"])  # llama.cpp refuses a vocabulary without any
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(eos)
    writer.add_vocab_size(len(tokens))


def byte_names() -> list[str]:
    """GPT-2's printable name for each byte: itself if Latin-1 prints it, else the next free one from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]


def _add_tensors(writer: gguf.GGUFWriter, shape: Shape) -> None:
    width, feed_forward = shape.width, shape.feed_forward
    random = np.random.default_rng(seed=2)

    def add(name: str, *size: int) -> None:
        writer.add_tensor(f"{name}.weight", (random.standard_normal(size) * 0.08).astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))

    add("token_embd", 259, width)
    add("output", 259, width)
    add_norm("output_norm")
    for layer in range(shape.layers):
        for name in ("attn_norm", "ffn_norm"):
            add_norm(f"blk.{layer}.{name}")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", width, width)
        add(f"blk.{layer}.ffn_gate", feed_forward, width)
        add(f"blk.{layer}.ffn_up", feed_forward, width)
        add(f"blk.{layer}.ffn_down", width, feed_forward)
