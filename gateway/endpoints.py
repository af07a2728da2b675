"""The inference endpoints: one row per path says in which dialect it is spoken. Adding an endpoint is adding a row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from gateway.dialects import Dialect
from gateway.dialects.anthropic.dialect import Messages
from gateway.dialects.openai import OpenAI
from gateway.dialects.responses.dialect import Responses

__all__ = ["ENDPOINTS", "Endpoint"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How the requests of one path are understood. All are POST, with a JSON object that names its `model`.

    `counts` says that it asks for the length of a prompt only: no model is loaded for that.
    """

    dialect: Dialect
    counts: bool = False


_OPENAI = Endpoint(OpenAI())
_MESSAGES = Messages()

ENDPOINTS: Mapping[str, Endpoint] = MappingProxyType(
    {
        "/v1/chat/completions": _OPENAI,
        "/v1/completions": _OPENAI,
        "/v1/embeddings": _OPENAI,
        "/v1/rerank": _OPENAI,
        "/v1/responses": Endpoint(Responses()),
        "/v1/images/generations": _OPENAI,
        "/v1/audio/speech": _OPENAI,
        "/v1/messages": Endpoint(_MESSAGES),
        "/v1/messages/count_tokens": Endpoint(_MESSAGES, counts=True),
    }
)
