"""Devices and models of a simulated neuron, with sizes and speeds. No state, no I/O."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SimDevice:
    """One GPU, as `/discovery` reports it. VRAM in MB."""

    index: int
    name: str
    vram_total_mb: int
    compute_capability: str = "8.9"


@dataclass(frozen=True, slots=True)
class SimModel:
    """One model a neuron has on disk, and how it performs once it is resident.

    Time to an answer at speed 1 is `overhead_s + prompt tokens / prefill_tok_s + answer tokens / decode_tok_s`.
    `overhead_s` is silence before the first token that no token count explains; the comment at `PRESETS` says why
    there is any. `max_in_flight` requests run at once, `max_queue_depth` more wait, the next is refused with 503.

    `sleep` is the level, 1 or 2, at which it sleeps instead of being unloaded; 0 for models that cannot. A sleeper
    keeps `asleep_vram_mb`, and wakes in `wake_seconds`.
    """

    id: str
    vram_mb: int
    load_seconds: float = 5.0
    overhead_s: float = 0.0
    prefill_tok_s: float = 1000.0
    decode_tok_s: float = 50.0
    harness: str = "llamacpp"
    capabilities: tuple[str, ...] = ("chat", "completion")
    context: int = 32768
    output: int = 8192
    tool_call: bool = True
    reasoning: bool = False
    reasons_by_default: bool = False
    max_in_flight: int = 8
    max_queue_depth: int = 64
    embedding_dim: int = 1024
    sleep: int = 0
    wake_seconds: float = 1.0
    asleep_vram_mb: int = 256

    def first_token_s(self, prompt_tokens: int) -> float:
        """Seconds from admission to the end of prefill, at speed 1."""
        return self.overhead_s + prompt_tokens / self.prefill_tok_s

    def answer_s(self, prompt_tokens: int, answer_tokens: int) -> float:
        """Seconds from admission to the last token, at speed 1."""
        return self.first_token_s(prompt_tokens) + answer_tokens / self.decode_tok_s


# The probe (`text.PROBE`) is 20 prompt tokens (16 + 4 of chat template) and 2 answer tokens ("Tbil", "isi"), so
#
#   Qwen/Qwen3-1.7B   2.4375 + 20/640 + 2/64 = 2.4375 + 0.03125 + 0.03125 = 2.5 s
#   Qwen/Qwen3.6-27B  6.45   + 20/160 + 2/16 = 6.45   + 0.125   + 0.125   = 6.7 s
#
# 2.5 s and 6.7 s were measured on real GPUs, as totals. The time before the first token gets the remainder: that is
# the harder case for a gateway, and it leaves plausible decode speeds for long answers. The speeds are powers of two
# times ten so that the sums are exact.
PRESETS: dict[str, SimModel] = {
    model.id: model
    for model in (
        SimModel(
            "Qwen/Qwen3-1.7B",
            vram_mb=4096,
            load_seconds=4,
            overhead_s=2.4375,
            prefill_tok_s=640,
            decode_tok_s=64,
            reasoning=True,
        ),
        SimModel(
            "Qwen/Qwen3-8B",
            vram_mb=7168,
            load_seconds=9,
            overhead_s=3.0,
            prefill_tok_s=480,
            decode_tok_s=40,
            reasoning=True,
        ),
        SimModel(
            "Qwen/Qwen3-14B",
            vram_mb=12288,
            load_seconds=14,
            overhead_s=1.0,
            prefill_tok_s=320,
            decode_tok_s=32,
            reasoning=True,
            reasons_by_default=True,
        ),
        SimModel(
            "Qwen/Qwen3.6-27B",
            vram_mb=20480,
            load_seconds=25,
            overhead_s=6.45,
            prefill_tok_s=160,
            decode_tok_s=16,
            context=131072,
            reasoning=True,
            max_in_flight=4,
        ),
        SimModel(
            "Qwen/Qwen3-Embedding-0.6B",
            vram_mb=1536,
            load_seconds=2,
            overhead_s=0.01,
            prefill_tok_s=8000,
            capabilities=("embedding",),
            tool_call=False,
            max_in_flight=16,
        ),
        SimModel(
            "Qwen/Qwen3-Reranker-0.6B",
            vram_mb=1536,
            load_seconds=2,
            overhead_s=0.01,
            prefill_tok_s=8000,
            capabilities=("rerank",),
            tool_call=False,
            max_in_flight=16,
        ),
    )
}
