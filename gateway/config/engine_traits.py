"""What a neuron takes beyond plain chat completions: the dialects it speaks, and its habits. Values only.

A neuron says none of this about itself, so it comes from its `[[neurons]]` table (docs/engines.md).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["DIALECTS", "ENGINES_WITH_TOKENIZER", "PLAIN", "Backend", "ThinkingSwitch"]

DIALECTS = ("openai", "anthropic", "responses")
"""Chat completions and what goes with it; `/v1/messages`; `/v1/responses`."""

ThinkingSwitch = Literal["chat_template_kwargs", "reasoning_effort", "none"]


@dataclass(frozen=True, slots=True)
class Backend:
    """One neuron's.

    Args:
        dialects: What it speaks itself. A request in one of these is passed through; any other is translated.
        reasoning_content: Assistant messages may carry their thoughts as `reasoning_content`.
        system_anywhere: A system message may come later than first. The templates of Qwen 3.5 and newer, among
            others, refuse that, and coding CLIs send one in nearly every request; so by default a later one becomes
            a user message, marked as what it is.
        thinking_switch: How thinking is turned on and off: by `chat_template_kwargs.enable_thinking` (vLLM, SGLang,
            llama.cpp), by `reasoning_effort` (OpenAI), or not at all.
        ask_usage: Streams are asked for usage on our own account (`dialects.usage`), if their client does not.
        tokenizer: `POST /tokenize` counts the tokens of a conversation, as vLLM's does.
    """

    dialects: frozenset[str] = frozenset({"openai"})
    reasoning_content: bool = False
    system_anywhere: bool = False
    thinking_switch: ThinkingSwitch = "chat_template_kwargs"
    ask_usage: bool = False
    tokenizer: bool = False


PLAIN = Backend()
# That document `stream_options.include_usage`. Not transformers serve, which refuses fields it does not know, and not
# another cortex, which does as its own neurons say.
ENGINES_WITH_USAGE = frozenset({"llamacpp", "lmstudio", "ollama", "sglang", "tabbyapi", "vllm"})
ENGINES_WITH_TOKENIZER = frozenset({"vllm"})
