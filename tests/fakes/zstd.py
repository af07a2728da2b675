"""zstd frames made by hand (RFC 8878), independent of the library that decodes them: raw and repeated blocks only."""

from __future__ import annotations

MAGIC = b"\x28\xb5\x2f\xfd"
BLOCK_BYTES = 128 * 1024


def compress(data: bytes) -> bytes:
    """One frame. Only blocks of one repeated byte get smaller."""
    single_segment_with_size = b"\xa0" + len(data).to_bytes(4, "little")
    blocks = [data[start : start + BLOCK_BYTES] for start in range(0, len(data), BLOCK_BYTES)] or [b""]
    encoded = [_block(block, is_last=number == len(blocks)) for number, block in enumerate(blocks, 1)]
    return MAGIC + single_segment_with_size + b"".join(encoded)


def _block(data: bytes, *, is_last: bool) -> bytes:
    is_repeated = len(data) > 1 and data.count(data[:1]) == len(data)
    header = is_last | is_repeated << 1 | len(data) << 3
    return header.to_bytes(3, "little") + (data[:1] if is_repeated else data)
