"""How many tokens a prompt will be, without its tokenizer: an estimate.

The heuristic: one token for every 3.5 bytes of the outgoing JSON of messages and tools, and 1,000 for every image.

- Bytes of UTF-8, not characters: tokenizers of the last years take about 4 bytes of English, 3 of code and JSON,
  4 of Cyrillic (2 letters) and 3 to 4 of Chinese (1 character and a bit), so bytes serve all scripts about alike.
- The JSON around a message (`{"role":"user","content":""}`, 28 bytes, 8 tokens) stands for the 4 or 5 tokens a chat
  template puts there, and leaves a little over. An estimate that is too high compacts a conversation early; one that
  is too low overflows a context.
- A picture of a megapixel is about 1,300 tokens to Qwen's vision models and at most 1,600 to Anthropic's.
"""

from __future__ import annotations

__all__ = ["BYTES_PER_TOKEN", "estimate"]

BYTES_PER_TOKEN = 3.5
TOKENS_PER_IMAGE = 1000


def estimate(text_bytes: int, images: int = 0) -> int:
    """Tokens of a prompt of so many bytes of text (as JSON) and so many images; at least 1."""
    return max(1, round(text_bytes / BYTES_PER_TOKEN)) + TOKENS_PER_IMAGE * images
