"""One row of the ledger, as plain values: what one request was, and what it used.

A request makes a `LedgerRow`, in a fraction of the time that 22 fields take, and the store's thread takes it apart by
its three parts. `LedgerEntry` is the same by names.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from typing import ClassVar, TypeAlias

import msgspec

from gateway.access.limits.amounts import Amounts

__all__ = ["NO_VALUES", "LedgerEntry", "LedgerRow", "OptionalValues", "SharedValues", "row_ids"]


class LedgerEntry(msgspec.Struct, gc=False):
    """One request that has ended. Tokens of an answer that reports none are estimated, or 0 if there is nothing to see.

    Attributes:
        key_id: The key's id; None for a request without a key, in open mode.
        alias: The alias that the client asked for; None if it asked for a model.
        model: The model that answered, or was to.
        node: The neuron that answered, or was last asked.
        endpoint: The path.
        dialect: The API of the path: "openai", "anthropic" or "responses".
        status: The HTTP status that the client got; 0 for none.
        outcome: How the request ended; see the request's record.
        estimated: Whether any of the tokens are an estimate.
        id: Unique over all gateways, made when the request ends: inserting a row twice changes nothing.
        at: When the request started, in unix seconds.
        total_ms: From the request's start to its end.
        gpu_seconds: The time of its leases, times the model's devices, shared evenly with concurrent requests.
        queue_ms: The time in a model's queue; None for a request that did not wait there.
        load_ms: The time that it waited for its model to be loaded.
        first_token_ms: From the request's start to the first token of a stream.
        energy_wh: As `gpu_seconds`, the devices' energy; None where the neuron reports no watts.
        cost: By the prices of `models.toml`; None for a model without a price.
    """

    key_id: str | None
    alias: str | None
    model: str | None
    node: str | None
    endpoint: str
    dialect: str
    status: int
    outcome: str
    estimated: bool
    id: str
    at: float
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_ms: float = 0.0
    gpu_seconds: float = 0.0
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    queue_ms: float | None = None
    load_ms: float | None = None
    first_token_ms: float | None = None
    energy_wh: float | None = None
    cost: float | None = None

    @property
    def used(self) -> Amounts:
        """What budgets count of it."""
        return Amounts(self.prompt_tokens + self.completion_tokens, self.cost or 0.0, self.gpu_seconds)

    def row(self) -> LedgerRow:
        """The same as a row."""
        values = msgspec.structs.astuple(self)
        optional = (self.cached_tokens or None, self.reasoning_tokens or None, *values[_OPTIONAL + 2 :])
        return LedgerRow(values[:_OWN], values[_OWN:_OPTIONAL], NO_VALUES if optional == NO_VALUES else optional)


_FIELDS = LedgerEntry.__struct_fields__
_OWN, _OPTIONAL = _FIELDS.index("id"), _FIELDS.index("cached_tokens")

SharedValues: TypeAlias = tuple[str | None, str | None, str | None, str | None, str, str, int, str, bool]
OptionalValues: TypeAlias = tuple[
    int | None, int | None, float | None, float | None, float | None, float | None, float | None
]

NO_VALUES: OptionalValues = (None, None, None, None, None, None, None)
"""Rows without any optional value should have this object: it is found sooner than an equal one."""


class LedgerRow(msgspec.Struct, gc=False):
    """An entry's values, in the order of its fields.

    Attributes:
        shared: Those up to `estimated`, which are the same in many rows.
        own: From `id` to `gpu_seconds`.
        optional: The others, each of which may be None; often `NO_VALUES`. No cached or reasoning tokens are None too.
    """

    SHARED: ClassVar = _FIELDS[:_OWN]
    OWN: ClassVar = _FIELDS[_OWN:_OPTIONAL]
    OPTIONAL: ClassVar = _FIELDS[_OPTIONAL:]

    shared: SharedValues
    own: tuple[str, float, int, int, float, float]
    optional: OptionalValues

    @property
    def id(self) -> str:
        """The entry's id."""
        return self.own[0]

    @property
    def at(self) -> float:
        """When the request started, in unix seconds."""
        return self.own[1]

    @property
    def key_id(self) -> str | None:
        """The key's id."""
        return self.shared[0]

    def entry(self) -> LedgerEntry:
        """The same by names."""
        cached, reasoning, *others = self.optional
        return LedgerEntry(*self.shared, *self.own, cached or 0, reasoning or 0, *others)


def row_ids() -> Callable[[], str]:
    """A function that returns another id at each call, unique over all processes: 80 random bits and a count."""
    return _ids(os.urandom(10).hex()).__next__


def _ids(prefix: str) -> Iterator[str]:
    last_digits = [f"{number:03}" for number in range(1000)]  # a number is not formatted for each id
    for thousands in itertools.count(10**6):  # as many digits for all, so that the ids of a process sort by their time
        start = f"{prefix}{thousands}"
        for digits in last_digits:
            yield start + digits
