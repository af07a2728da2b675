"""A GGUF file of an untrained llama: valid for an engine, some 500 kB, made in a moment; its output is noise.

The vocabulary is GPT-2's 256 bytes, so that every text has tokens and every token is one byte; the weights are random
and always the same. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; tensor names as in `gguf`.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, FEED_FORWARD = 64, 2, 4, 128
CONTEXT = 65536  # so that a test can disconnect in the middle of an answer
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "


def make(path: Path) -> None:
    """Write the model to `path`."""
    writer = gguf.GGUFWriter(str(path), "llama")
    _describe(writer)
    tokens = [*byte_names(), "ab", "<bos>", "<eos>"]
    types = [gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * 2
    add_vocabulary(writer, tokens, types, eos=258)
    writer.add_chat_template(TEMPLATE)
    _add_tensors(writer)
    write(writer)


def write(writer: gguf.GGUFWriter) -> None:
    """Write the whole file, and close it."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _describe(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny-random")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(WIDTH // HEADS)
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


def _add_tensors(writer: gguf.GGUFWriter) -> None:
    random = np.random.default_rng(seed=2)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) * 0.08).astype(np.float32))

    def add_norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))

    add("token_embd", 259, WIDTH)
    add("output", 259, WIDTH)
    add_norm("output_norm")
    for layer in range(LAYERS):
        for name in ("attn_norm", "ffn_norm"):
            add_norm(f"blk.{layer}.{name}")
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            add(f"blk.{layer}.{name}", WIDTH, WIDTH)
        add(f"blk.{layer}.ffn_gate", FEED_FORWARD, WIDTH)
        add(f"blk.{layer}.ffn_up", FEED_FORWARD, WIDTH)
        add(f"blk.{layer}.ffn_down", WIDTH, FEED_FORWARD)
