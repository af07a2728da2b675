"""An estimate of a prompt's tokens without the model's tokenizer.

One token per 3.5 bytes of the outgoing JSON of messages and tools, and 1,000 per image:

- Bytes of UTF-8, not characters. Today's tokenizers take about 4 bytes of English, 3 of code and JSON, 4 of Cyrillic
  (2 letters) and 3 to 4 of Chinese (a little over 1 character) per token, so bytes fit all scripts about equally.
- The JSON around a message (`{"role":"user","content":""}`, 28 bytes, 8 tokens) stands for the 4 or 5 tokens that a
  chat template adds, so the estimate is a little high. That is the safe side: a high estimate makes a client compact a
  conversation early, a low one lets it overflow the context.
- An image of a megapixel takes about 1,300 tokens of Qwen's vision models and at most 1,600 of Anthropic's.
"""

from __future__ import annotations

__all__ = ["BYTES_PER_TOKEN", "TOKENS_PER_IMAGE", "estimate"]

BYTES_PER_TOKEN = 3.5
TOKENS_PER_IMAGE = 1000


def estimate(text_bytes: int, images: int = 0) -> int:
    """Tokens of a prompt with this many bytes of text (as JSON) and this many images; at least 1."""
    tokens = (4 * text_bytes + 7) // 14 or 1  # bytes / 3.5, rounded; for each request
    return tokens + TOKENS_PER_IMAGE * images if images else tokens
