"""How an engine is addressed, with or without a neuron before it: its model names, paths, credentials, traits. No I/O.

Plain requests to a neuron have our model ids, `/v1` and no credentials, and need no `EngineAccess`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Self, get_args

from gateway.config.engine_traits import (
    DIALECTS_TRANSLATED_BETTER,
    ENGINES_THAT_STOP_ONLY_STREAMS,
    ENGINES_WITH_TOKENIZER,
    ENGINES_WITH_USAGE,
    ENGINES_WITHOUT_THINKING_SWITCH,
    Backend,
    DialectName,
    ThinkingSwitch,
)
from gateway.config.settings import NeuronSettings
from gateway.fleet.reports import ModelReport

__all__ = ["EngineAccess", "backend_of", "bearer"]

ALL_DIALECTS = frozenset(get_args(DialectName))
DEFAULT_DIALECTS = ("openai",)

_OUR_PREFIX = b"/v1"  # of every inference path that the gateway serves

_TOKENIZE_AT_THE_ROOT = frozenset({"vllm", "sglang", "llamacpp"})  # with any base path (docs/engines.md)
_AT_THE_ROOT = {b"/v1/tokenize": b"/tokenize", b"/v1/detokenize": b"/detokenize"}


def bearer(api_key: str) -> str:
    """The value of an `Authorization` header (RFC 6750, section 2.1)."""
    return f"Bearer {api_key}"


@dataclass(frozen=True, slots=True)
class EngineAccess:
    """One engine's conventions, from its `[[neurons]]` table.

    Args:
        base_path: Replaces `/v1`; may be empty.
        moved: Our path -> the engine's path, for paths to which `base_path` does not apply.
        names: Our model id -> the engine's name (`serves`). An id that is not a key is the engine's name already.
        authorization: Value of the `Authorization` header, or None. Not shown in the repr.
    """

    base_path: bytes = _OUR_PREFIX
    moved: Mapping[bytes, bytes] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    authorization: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: NeuronSettings, report: ModelReport | None = None) -> Self | None:
        """From the settings, and from what a neuron reports of a model; None for plain requests to a neuron."""
        if settings.kind == "openai":
            key = settings.api_key
            moved = _AT_THE_ROOT if settings.engine in _TOKENIZE_AT_THE_ROOT else {}
            return cls(settings.base_path.encode(), moved, settings.serves, _authorization(key))
        moved = _AT_THE_ROOT if report is not None and report.engine in _TOKENIZE_AT_THE_ROOT else {}
        is_renamed = report is not None and report.serves not in {None, report.id}
        names = {report.id: report.serves or ""} if report is not None and is_renamed else {}
        if not moved and not names and settings.token is None:
            return None
        return cls(moved=moved, names=names, authorization=_authorization(settings.token))

    def model_name(self, model_id: str) -> str:
        """The engine's name for a model of ours."""
        return self.names.get(model_id, model_id)

    def path_at_engine(self, path: bytes) -> bytes:
        """The engine's path for one of ours; the query stays as it is."""
        if self.moved:
            bare, question_mark, query = path.partition(b"?")
            if (moved := self.moved.get(bare)) is not None:
                return moved + question_mark + query
        if self.base_path == _OUR_PREFIX or not path.startswith(_OUR_PREFIX + b"/"):
            return path
        return self.base_path + path[len(_OUR_PREFIX) :]

    def with_credentials(self, lines: bytes) -> bytes:
        """Header lines with the engine's API key, if there is one."""
        return lines if self.authorization is None else b"%bauthorization: %b\r\n" % (lines, self.authorization)


def _authorization(key: str | None) -> bytes | None:
    return None if key is None else bearer(key).encode()


def backend_of(settings: NeuronSettings, engine: str | None = None, dialects: Collection[str] | None = None) -> Backend:
    """The traits of a neuron, or of the engine that it reports for a model.

    Args:
        settings: The neuron's table.
        engine: The reported kind of engine, if any; that of the settings wins.
        dialects: The reported dialects, if any. Those of the settings win, unless they are the default.
    """
    name = settings.engine or engine
    thinking: ThinkingSwitch = "none" if name in ENGINES_WITHOUT_THINKING_SWITCH else "chat_template_kwargs"
    spoken: frozenset[str] = frozenset(settings.dialects)
    if dialects is not None and settings.dialects == DEFAULT_DIALECTS:
        spoken |= frozenset(dialects) & ALL_DIALECTS - DIALECTS_TRANSLATED_BETTER.get(engine or "", frozenset())
    return Backend(
        dialects=spoken,
        reasoning_content=settings.reasoning_content,
        system_anywhere=settings.system_anywhere,
        thinking_switch=settings.thinking or thinking,
        ask_usage=name in ENGINES_WITH_USAGE if settings.ask_usage is None else settings.ask_usage,
        tokenizer=name in ENGINES_WITH_TOKENIZER,
        alternating_roles=settings.alternating_roles,
        is_engine=settings.kind == "openai" or engine is not None,
        stops_only_streams=name in ENGINES_THAT_STOP_ONLY_STREAMS,
    )
