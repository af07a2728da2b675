"""Who must go so that a model fits: one plan, computed before the first unload. Pure; doing it is `room.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import may_displace
from gateway.fleet.node import Node, NodeModel
from gateway.fleet.routing.choose import catalogue_id, held_mb, may_be_evicted, priority_of

__all__ = ["expired", "fits", "plan", "room_may_come", "why_no_room"]


def plan(
    profile: ModelProfile,
    node: Node,
    free_mb: Mapping[int, int],
    catalogue: Catalogue,
    *,
    resident_before: float | None = None,
) -> tuple[NodeModel, ...] | None:
    """The fewest victims, least recently used first, that make room for `profile` on the devices of `free_mb`.

    Args:
        profile: What is to be loaded, over as many devices as `free_mb` has, evenly.
        node: Where.
        free_mb: Live free memory in MB by device index, of the devices the load will use.
        catalogue: For residency classes.
        resident_before: Only models loaded before this time (Trio's clock, s) may go; None spares nobody for youth.

    Returns:
        Nobody if it fits already or its need is unknown; None if no permitted set of victims is enough.
    """
    if profile.vram_mb is None or not free_mb:
        return ()
    need_mb = ceil(profile.vram_mb / len(free_mb))
    missing_mb = {index: need_mb - free for index, free in free_mb.items() if free < need_mb}
    victims: list[_Victim] = []
    for held in sorted(_permitted(profile, node, catalogue, resident_before), key=_last_used):
        if not _lacking(missing_mb, victims):
            break
        # A model whose size nobody knows frees nothing that can be counted on.
        frees_mb = {index: held_mb(held, index, catalogue) or 0.0 for index in missing_mb}
        if any(frees_mb.values()):
            victims.append(_Victim(held, frees_mb))
    if _lacking(missing_mb, victims):
        return None
    return tuple(victim.held for victim in _without_the_needless(missing_mb, victims))


class _Victim(NamedTuple):
    held: NodeModel
    frees_mb: Mapping[int, float]


def _permitted(
    profile: ModelProfile, node: Node, catalogue: Catalogue, resident_before: float | None
) -> list[NodeModel]:
    return [
        held
        for held in node.models.values()
        if may_be_evicted(held, profile, catalogue)
        and (resident_before is None or held.resident_since is None or held.resident_since <= resident_before)
    ]


def _last_used(held: NodeModel) -> tuple[float, str]:
    """Never used by us counts from when it came."""
    used = held.last_used if held.last_used is not None else held.resident_since
    return (used or 0.0, held.id)


def _lacking(missing_mb: Mapping[int, int], victims: Sequence[_Victim]) -> bool:
    return any(sum(victim.frees_mb[index] for victim in victims) < missing for index, missing in missing_mb.items())


def _without_the_needless(missing_mb: Mapping[int, int], victims: list[_Victim]) -> list[_Victim]:
    """A later, larger victim may have made an earlier, smaller one pointless: the most recently used stay first."""
    for spared in reversed(list(victims)):
        rest = [victim for victim in victims if victim is not spared]
        if not _lacking(missing_mb, rest):
            victims = rest
    return victims


def fits(profile: ModelProfile, free_mb: Mapping[int, int], *, over: int) -> bool:
    """Whether there is room on each of `over` devices; what is unknown is no reason to say no."""
    return profile.vram_mb is None or all(free >= ceil(profile.vram_mb / over) for free in free_mb.values())


# Is it worth waiting? .................................................................................................


def room_may_come(profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue) -> bool:
    """Whether there would be room if every model it may displace became idle: then it is a matter of time.

    One of them whose size nobody knows may be as large as it takes: unknown is not zero. A poisoned one keeps its room
    until its neuron is restarted, and no request waits for that.
    """
    if profile.vram_mb is None or not free_mb:
        return True
    need_mb = ceil(profile.vram_mb / len(free_mb))
    residents = [held for held in node.models.values() if held.status is not None and not held.is_stuck]
    lower = [held for held in residents if _may_ever_go(held, profile, catalogue)]
    for index, free in free_mb.items():
        sizes_mb = [held_mb(held, index, catalogue) for held in lower]
        known_mb = [size for size in sizes_mb if size is not None]
        if len(known_mb) == len(sizes_mb) and free + sum(known_mb) < need_mb:
            return False
    return True


def _may_ever_go(held: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    """Once it is idle. What serves an alias until `incoming` is there cannot be what makes room for it."""
    return not _is_kept(held, incoming, catalogue) and may_displace(incoming.priority, priority_of(held.id, catalogue))


def _is_kept(held: NodeModel, incoming: ModelProfile, catalogue: Catalogue) -> bool:
    return catalogue_id(held.id, catalogue) in catalogue.kept_until_loaded(incoming.id)


def why_no_room(profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue) -> str:
    """For the person who is told that there is none: what has the room on this node, or that it is too small."""
    kept = sorted(
        held.id for held in node.models.values() if held.status is not None and _is_kept(held, profile, catalogue)
    )
    if kept:
        return (
            f"{node.name} is held by {', '.join(kept)}, which serves until it is there;"
            f' an alias with swap = "cold" moves without that'
        )
    above = sorted(
        held.id
        for held in node.models.values()
        if held.status is not None and not may_displace(profile.priority, priority_of(held.id, catalogue))
    )
    stuck = sorted(f"{held.id} ({held.status})" for held in node.models.values() if held.is_stuck)
    if above:
        return f"{node.name} is held by {', '.join(above)}, which it may not displace"
    if stuck:
        return f"{node.name} is held by {', '.join(stuck)}, which only its restart frees"
    total_mb = sum(device.vram_total_mb for device in node.devices or () if device.index in free_mb)
    return f"{node.name} has {total_mb} MB where it would go, and not enough of them for models"


def expired(node: Node, now: float, ttl_s: Callable[[str], float]) -> list[NodeModel]:
    """Loaded models that nobody has used for longer than their time to live; 0 is for ever."""
    return [
        held
        for held in node.models.values()
        if held.status == "loaded"
        and not held.leases
        and not held.others
        and (allowed := ttl_s(held.id)) > 0
        and now - _last_used(held)[0] >= allowed
    ]
