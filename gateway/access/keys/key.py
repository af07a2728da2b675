"""A key as requests see it. Its secret is not here: the store has only the secret's SHA-256."""

from dataclasses import dataclass, field
from typing import Literal

from gateway.access.keys.scope import EVERYTHING
from gateway.access.limits.limit import Limits

Verb = Literal["infer", "read", "operate", "keys"]


@dataclass(frozen=True, slots=True)
class Key:
    """One key; all times are unix seconds.

    Attributes:
        is_unrestricted: It may send inference requests, and use every model and alias.
    """

    id: str  # base62, the middle part of `ctx_<id>_<secret>`
    name: str  # unique among keys that are not revoked; what logs and the audit trail show
    may: tuple[str, ...] = ("*",)  # globs over the names that clients ask for
    verbs: frozenset[Verb] = frozenset({"infer"})
    limits: Limits = field(default_factory=Limits)
    weight: int = 100
    priority: Literal["interactive", "batch"] = "interactive"
    created_at: float = 0.0
    expires_at: float | None = None
    revoked_at: float | None = None
    is_unrestricted: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "is_unrestricted", "infer" in self.verbs and self.may == EVERYTHING)
