"""Protection from DNS rebinding: which `Host` a request may name while a gateway on loopback asks for no key.

A web page can have the name of its own server resolve to 127.0.0.1, and then send requests to this gateway from the
browser of anyone who visits it: for the browser they go to the page's own origin. `Host` still has that name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable
from contextlib import suppress

from gateway.errors import Misdirected

__all__ = ["HostCheck"]

_LOCAL_SUFFIXES = (".localhost", ".local", ".internal")  # DNS on the internet has none of these (RFC 6761, RFC 6762)
_REMEMBERED = 64  # values of the header


class HostCheck:
    """Checks the `Host` of requests, once it is switched on.

    Args:
        allowed: Names that requests may have besides those that can only be local.

    Attributes:
        is_on: Whether the gateway is open and on loopback.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self.is_on = False
        names = (*allowed, socket.gethostname(), socket.getfqdn())
        self._allowed = frozenset(name.lower().rstrip(".") for name in names)
        self._good: set[bytes] = set()

    def fault(self, host: bytes | None) -> Misdirected | None:
        """The error for a request with this `Host`, or None. No browser sends a request without one."""
        if not self.is_on or host is None or host in self._good:
            return None
        name = _name_in(host.decode("latin-1"))
        if not self._is_local(name):
            return Misdirected(
                f"this gateway does not answer requests for the host '{name[:100]}': it asks for no key, and a web page"
                " could send them; name the host in [access] allowed_hosts, or set [access] mode to keys"
            )
        if len(self._good) < _REMEMBERED:
            self._good.add(host)
        return None

    def _is_local(self, name: str) -> bool:
        if "." not in name.rstrip(".") or name in self._allowed or name.endswith(_LOCAL_SUFFIXES):
            return True
        with suppress(ValueError):
            ipaddress.ip_address(name)
            return True
        return False


def _name_in(host: str) -> str:
    """The name without its port, in lower case. An IPv6 address has brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")
