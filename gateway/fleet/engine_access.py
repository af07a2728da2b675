"""How an engine without a neuron is addressed: its model names, its paths, its API key. No I/O.

A neuron takes our model ids, serves under `/v1` and wants no credentials, so its node has no `EngineAccess`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from gateway.asgi import Headers
from gateway.config.settings import NeuronSettings

__all__ = ["EngineAccess", "bearer"]

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
    def of(cls, settings: NeuronSettings) -> Self | None:
        """From the settings; None for a neuron."""
        if settings.kind == "neuron":
            return None
        key = settings.api_key
        moved = _AT_THE_ROOT if settings.engine in _TOKENIZE_AT_THE_ROOT else {}
        authorization = None if key is None else bearer(key).encode()
        return cls(settings.base_path.encode(), moved, settings.serves, authorization)

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

    def with_credentials(self, headers: Headers) -> Headers:
        """A copy of `headers` with the engine's API key, or `headers` itself if there is none."""
        return headers if self.authorization is None else [*headers, (b"authorization", self.authorization)]
