"""What an engine's model list says of the model it serves: its name there, and its context length."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

__all__ = ["ServedModel", "served_model"]


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The engine's own name of the model, and the tokens that fit into one request; None where it does not say."""

    name: str
    context: int | None = None


class _Entry(msgspec.Struct):
    id: str
    max_model_len: int | None = None  # vLLM, SGLang
    meta: Any = None  # llama.cpp: {"n_ctx": …}


class _ModelList(msgspec.Struct):
    data: list[_Entry]


def served_model(body: bytes, model_id: str) -> ServedModel:
    """Read the body of `GET /v1/models`. An engine that lists other names only serves the first of them."""
    try:
        entries = msgspec.json.decode(body, type=_ModelList).data
    except msgspec.DecodeError:
        return ServedModel(model_id)
    entry = next((entry for entry in entries if entry.id == model_id), entries[0] if entries else None)
    if entry is None:
        return ServedModel(model_id)
    context = entry.max_model_len
    if context is None and isinstance(entry.meta, dict) and isinstance(entry.meta.get("n_ctx"), int):
        context = entry.meta["n_ctx"]
    return ServedModel(entry.id, context)
