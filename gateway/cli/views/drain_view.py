"""What `cortex drain` prints while it waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["progress_lines"]


def progress_lines(view: Mapping[str, Any]) -> Iterator[str]:
    """The state of a drain, from the JSON of the admin API; the caller prints each line once."""
    node, leases = view["node"], view["leases"]
    for move in view["moves"]:
        match move["state"]:
            case "loading":
                yield f"{move['model']}: loaded only on {node}; loading it on another neuron"
            case "moved":
                yield f"{move['model']}: loaded on {move['node']}"
                for model in move.get("displaced", ()):
                    yield f"{model}: evicted to make room; no neuron has it loaded now"
            case _:
                yield f"{move['model']}: cannot be moved: {move['reason']}"
    match view["state"]:
        case "draining":
            yield f"{node}: draining, {leases} running request{'s' * (leases != 1)} left"
        case "drained":
            yield f"{node}: drained"
        case "open":
            yield f"{node}: open"
