"""What a server accepts beyond plain chat completions. Values only.

Servers do not report this, so it comes from the `[[neurons]]` table of `cortex.toml` (docs/engines.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

__all__ = [
    "DIALECTS_TRANSLATED_BETTER",
    "ENGINES_THAT_STOP_ONLY_STREAMS",
    "ENGINES_WITHOUT_THINKING_SWITCH",
    "ENGINES_WITH_TOKENIZER",
    "ENGINES_WITH_USAGE",
    "PLAIN",
    "Backend",
    "DialectName",
    "EngineName",
    "ThinkingSwitch",
]

DialectName: TypeAlias = Literal["openai", "anthropic", "responses"]
"""`/v1/chat/completions` and the other OpenAI endpoints; `/v1/messages`; `/v1/responses`."""

EngineName: TypeAlias = Literal[
    "cortex", "llamacpp", "lmstudio", "ollama", "sglang", "tabbyapi", "transformers", "vllm"
]  # fmt: skip
ThinkingSwitch: TypeAlias = Literal["chat_template_kwargs", "reasoning_effort", "none"]


@dataclass(frozen=True, slots=True)
class Backend:
    """The traits of one neuron.

    Args:
        dialects: The dialects it speaks. Requests in these are passed through, others are translated.
        reasoning_content: Assistant messages may carry their reasoning as `reasoning_content`.
        system_anywhere: A system message may come after the first message. The templates of Qwen 3.5 and newer,
            among others, refuse that, and coding CLIs send one in nearly every request. So by default a later one
            becomes a user message that is marked as a system message.
        thinking_switch: How thinking is turned on and off: by `chat_template_kwargs.enable_thinking` (vLLM, SGLang,
            llama.cpp), by `reasoning_effort` (OpenAI), or not at all.
        ask_usage: Ask streams for usage (`dialects.include_usage`) if their client does not.
        tokenizer: `POST /tokenize` counts the tokens of a conversation, as in vLLM.
        alternating_roles: Whether consecutive messages of one role are merged into one. None merges them in
            translations only: whether roles must alternate depends on the model's chat template, which no engine
            reports, and Anthropic's API merges them itself. True merges them in chat completions that would otherwise
            pass through, too, and puts an assistant message between a tool's result and a user message.
        is_engine: An inference engine or another server, not a neuron: an answer in another form than was asked for is
            converted (`dialects.chat.pass_through`).
        stops_only_streams: When the gateway closes the connection, it stops generating an answer only if that is a
            stream. So a stream is asked for in any case, and assembled for a client that did not ask for one.
    """

    dialects: frozenset[str] = frozenset({"openai"})
    reasoning_content: bool = False
    system_anywhere: bool = False
    thinking_switch: ThinkingSwitch = "chat_template_kwargs"
    ask_usage: bool = False
    tokenizer: bool = False
    alternating_roles: bool | None = None
    is_engine: bool = False
    stops_only_streams: bool = False
    passes_all: bool = field(init=False, repr=False, compare=False)
    """Whether a request in its dialect needs no look at the other traits, as at every neuron."""

    def __post_init__(self) -> None:
        exceptions = self.ask_usage or self.alternating_roles or self.is_engine or self.stops_only_streams
        object.__setattr__(self, "passes_all", not exceptions)


PLAIN = Backend()

ENGINES_WITH_USAGE = frozenset({"llamacpp", "lmstudio", "ollama", "sglang", "tabbyapi", "vllm"})
"""Those that document `stream_options.include_usage`.

Not transformers serve, which refuses fields it does not know; not cortex, whose own neurons decide.
"""
ENGINES_THAT_STOP_ONLY_STREAMS = frozenset({"llamacpp", "transformers"})
ENGINES_WITH_TOKENIZER = frozenset({"vllm"})
ENGINES_WITHOUT_THINKING_SWITCH = frozenset({"transformers"})  # it refuses fields it does not know

DIALECTS_TRANSLATED_BETTER = {"llamacpp": frozenset({"anthropic", "responses"})}
"""Dialects that an engine speaks in a way that official SDKs cannot read, and cortex's translation they can.

llama.cpp's `/v1/responses` sends events without sequence numbers and output indices; its `/v1/messages` starts a block
before it has stopped the previous one. A neuron that reports them gets translated requests all the same.
"""
