"""The process's limit of open files and sockets, and how many client connections it allows."""

from __future__ import annotations

import resource

import structlog

__all__ = ["connections_within", "raise_limit"]

# For listening sockets, epoll, inotify, pollers, metrics, spooled uploads, and the operator's own connections.
RESERVE = 128
PER_CONNECTION = 2  # the client's, and the neuron's while a request runs

log = structlog.get_logger("cortex.descriptors")


def raise_limit() -> None:
    """Raise the soft limit to the hard limit. The usual soft limit, 1024, is for select(2), which is not used."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_within(wanted: int) -> int:
    """Return `wanted`, or the number of client connections that the file limit allows, whichever is smaller.

    With more, the gateway would accept clients and then have no descriptors left for connections to neurons.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    allowed = max(1, (soft - RESERVE) // PER_CONNECTION)
    if allowed < wanted:
        write_log = log.warning if allowed < wanted / 2 else log.info  # the usual 20,000 files are nearly enough
        hint = "raise ulimit -n (LimitNOFILE)"
        write_log("connections_limited", wanted=wanted, limit=allowed, open_files=soft, hint=hint)
    return min(wanted, allowed)
