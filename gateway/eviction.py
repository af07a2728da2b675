"""Who must go so that a model fits: one plan, computed before the first unload. Pure; doing it is `lifecycle.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil

from catalogue.models import Catalogue, ModelProfile
from catalogue.placement import may_displace
from gateway.fleet import Node, NodeModel
from gateway.routing import may_be_evicted, priority_of

__all__ = ["expired", "holders_of_room", "plan", "room_may_come"]


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
    victims: list[NodeModel] = []
    for held in sorted(_permitted(profile, node, catalogue, resident_before), key=_last_used):
        if not _lacking(missing_mb, victims):
            break
        if any(_held_mb(held, index) for index in missing_mb):
            victims.append(held)
    if _lacking(missing_mb, victims):
        return None
    return _without_the_needless(missing_mb, victims)


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


def _held_mb(held: NodeModel, device: int) -> float:
    """What it holds on one device; a model that does not say how much frees nothing that can be counted on."""
    report = held.report
    if report is None or report.vram_used_mb is None or device not in report.devices:
        return 0.0
    return report.vram_used_mb / len(report.devices)


def _lacking(missing_mb: Mapping[int, int], victims: Sequence[NodeModel]) -> bool:
    return any(sum(_held_mb(held, index) for held in victims) < missing for index, missing in missing_mb.items())


def _without_the_needless(missing_mb: Mapping[int, int], victims: list[NodeModel]) -> tuple[NodeModel, ...]:
    """A later, larger victim may have made an earlier, smaller one pointless: the most recently used stay first."""
    for held in reversed(list(victims)):
        rest = [victim for victim in victims if victim is not held]
        if not _lacking(missing_mb, rest):
            victims = rest
    return tuple(victims)


# Is it worth waiting? .................................................................................................


def room_may_come(profile: ModelProfile, node: Node, free_mb: Mapping[int, int], catalogue: Catalogue) -> bool:
    """Whether there would be room if every model it may displace became idle: then it is a matter of time."""
    if profile.vram_mb is None:
        return True
    need_mb = ceil(profile.vram_mb / len(free_mb)) if free_mb else 0
    lower = [
        held
        for held in node.models.values()
        if held.status is not None and may_displace(profile.priority, priority_of(held.id, catalogue))
    ]
    return all(free + sum(_held_mb(held, index) for held in lower) >= need_mb for index, free in free_mb.items())


def holders_of_room(profile: ModelProfile, node: Node, catalogue: Catalogue) -> list[str]:
    """The models it may not displace, for the person who is told that there is no room."""
    return sorted(
        held.id
        for held in node.models.values()
        if held.status is not None and not may_displace(profile.priority, priority_of(held.id, catalogue))
    )


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
