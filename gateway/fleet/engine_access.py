"""How to speak to a server that is no neuron: its names for models, its path, its key. No I/O, no choice of server.

A neuron needs none of it: it takes our ids, serves under `/v1` and asks for no password. So a neuron's node has no
`Access` at all, and its requests pay one look at None.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from gateway.asgi import Headers
from gateway.config.settings import NeuronSettings

__all__ = ["Access", "bearer"]

_OUR_PREFIX = b"/v1"  # what every inference path of ours begins with

_TOKENIZE_AT_THE_ROOT = frozenset({"vllm", "sglang", "llamacpp"})  # whatever their base path (docs/engines.md)
_AT_THE_ROOT = {b"/v1/tokenize": b"/tokenize", b"/v1/detokenize": b"/detokenize"}


def bearer(api_key: str) -> str:
    """The value of an `Authorization` header (RFC 6750, section 2.1)."""
    return f"Bearer {api_key}"


@dataclass(frozen=True, slots=True)
class Access:
    """One engine's conventions, from its `[[neurons]]` table.

    Args:
        base_path: What stands there where we have `/v1`; empty for none.
        moved: Paths that are elsewhere than `base_path` says.
        names: Our id of a model -> the engine's own name. An id that is not in it is the engine's own.
        authorization: Value of the header that lets us in, or None. In no repr.
    """

    base_path: bytes = _OUR_PREFIX
    moved: Mapping[bytes, bytes] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    authorization: bytes | None = field(default=None, repr=False)

    @classmethod
    def of(cls, settings: NeuronSettings) -> Self | None:
        """None for a neuron."""
        if settings.kind == "neuron":
            return None
        key = settings.api_key
        moved = _AT_THE_ROOT if settings.engine in _TOKENIZE_AT_THE_ROOT else {}
        authorization = None if key is None else bearer(key).encode()
        return cls(settings.base_path.encode(), moved, settings.serves, authorization)

    def name_of(self, model_id: str) -> str:
        """What the outgoing body must call the model."""
        return self.names.get(model_id, model_id)

    def path_of(self, path: bytes) -> bytes:
        """A path of ours, query and all, as the engine has it."""
        if self.moved:
            bare, question_mark, query = path.partition(b"?")
            if (moved := self.moved.get(bare)) is not None:
                return moved + question_mark + query
        if self.base_path == _OUR_PREFIX or not path.startswith(_OUR_PREFIX + b"/"):
            return path
        return self.base_path + path[len(_OUR_PREFIX) :]

    def signed(self, headers: Headers) -> Headers:
        """Outgoing headers, which have none of the client's credentials left, with ours."""
        return headers if self.authorization is None else [*headers, (b"authorization", self.authorization)]
