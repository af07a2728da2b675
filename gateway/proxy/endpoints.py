"""The inference endpoints: one row per path, with its dialect and whether its body is a form. To add one, add a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gateway.dialects import Dialect
from gateway.dialects.anthropic.dialect import MessagesDialect
from gateway.dialects.openai import OpenAIDialect
from gateway.dialects.responses.dialect import ResponsesDialect

__all__ = ["ENDPOINTS", "Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path. Its method is POST, and the body names a `model`.

    Args:
        dialect: The dialect of requests, answers and errors.
        dialect_name: Its name in the ledger.
        is_form: The body is multipart/form-data with a field `model`; else it is a JSON object.
        counts: The endpoint counts the tokens of a prompt, and never loads a model.
    """

    dialect: Dialect
    dialect_name: str = "openai"
    is_form: bool = False
    counts: bool = False


_OPENAI = Endpoint(OpenAIDialect())
_OPENAI_FORM = Endpoint(OpenAIDialect(), is_form=True)
_MESSAGES = MessagesDialect()

ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "/v1/chat/completions": _OPENAI,
        "/v1/completions": _OPENAI,
        "/v1/embeddings": _OPENAI,
        "/v1/rerank": _OPENAI,
        "/v1/responses": Endpoint(ResponsesDialect(), "responses"),
        "/v1/images/generations": _OPENAI,
        "/v1/images/edits": _OPENAI_FORM,
        "/v1/audio/speech": _OPENAI,
        "/v1/audio/transcriptions": _OPENAI_FORM,
        "/v1/audio/translations": _OPENAI_FORM,
        "/v1/moderations": _OPENAI,
        # Engines disagree about the prefix of these, so both exist; `EngineAccess.path_at_engine` knows each engine's.
        "/v1/tokenize": _OPENAI,
        "/v1/detokenize": _OPENAI,
        "/tokenize": _OPENAI,
        "/detokenize": _OPENAI,
        "/v1/messages": Endpoint(_MESSAGES, "anthropic"),
        "/v1/messages/count_tokens": Endpoint(_MESSAGES, "anthropic", counts=True),
    }
)
