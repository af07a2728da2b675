"""How many files and sockets this process may have open, and how many connections that is enough for."""

from __future__ import annotations

import resource

import structlog

__all__ = ["connections_within", "raise_limit"]

# Listening sockets, epoll, inotify, pollers, metrics, spooled uploads, and what an operator has open to look at it all.
RESERVE = 128
PER_CONNECTION = 2  # the client's, and the neuron's while it is being answered

log = structlog.get_logger("cortex.descriptors")


def raise_limit() -> None:
    """As far as the system lets us. The usual soft limit of 1024 is there for select(2), which nobody here uses."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def connections_within(wanted: int) -> int:
    """As many clients' connections as are wanted, or as there are descriptors for.

    With more of them, the gateway would accept clients and have nothing left to reach a neuron with.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    enough_for = max(1, (soft - RESERVE) // PER_CONNECTION)
    if enough_for < wanted:
        tell = log.warning if enough_for < wanted / 2 else log.info  # the usual 20,000 files are nearly enough
        hint = "raise ulimit -n (LimitNOFILE)"
        tell("connections_limited", wanted=wanted, limit=enough_for, open_files=soft, hint=hint)
    return min(wanted, enough_for)
