"""The sessions of browsers that are signed in to the console. In memory, so a restart of the gateway ends them.

A session begins with a key and has that key's verbs. It ends when the operator signs out, after `LIFETIME_S`, when its
key is revoked, or when `SESSION_LIMIT` newer ones exist. Each sign-in makes a new id; an id that a client presents is
never adopted.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import trio

__all__ = [
    "CSRF_HEADER",
    "LIFETIME_S",
    "Operator",
    "Session",
    "Sessions",
    "Verb",
    "cookie_name",
    "session_id_of",
]

LIFETIME_S: Final = 12 * 3600.0  # a working day
SESSION_LIMIT: Final = 256
ID_BYTES: Final = 32
CSRF_HEADER: Final = "x-cortex-csrf"

Verb: TypeAlias = Literal["infer", "read", "operate", "keys"]


@dataclass(frozen=True, slots=True)
class Operator:
    """Who has signed in.

    Args:
        name: For the page and the audit log.
        verbs: What the key allows.
        is_valid: Whether the key is still valid; called at each use of the session.
        key_id: The id of the key; None for the admin token.
    """

    name: str
    verbs: frozenset[Verb]
    is_valid: Callable[[], bool]
    key_id: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """One browser. `csrf` is the value of `x-cortex-csrf`; `expires_at` is Trio's clock in s."""

    operator: Operator
    csrf: str
    expires_at: float

    def permits_change(self, csrf: str) -> bool:
        """Whether a changing request with this value of `x-cortex-csrf` comes from the page."""
        return hmac.compare_digest(csrf.encode(), self.csrf.encode())


class Sessions:
    """All sessions of one gateway.

    Args:
        identify: Returns whose key this is; None if it is not valid, or has no verb of the admin API.
    """

    def __init__(self, identify: Callable[[str], Operator | None]) -> None:
        self._identify = identify
        self._sessions: dict[bytes, Session] = {}  # by the hash of the id, the oldest first

    def __len__(self) -> int:
        return len(self._sessions)

    def begin(self, key: str) -> tuple[str, Session] | None:
        """Sign in: the id of a new session for the cookie, and the session; None if the key is not valid."""
        operator = self._identify(key)
        if operator is None:
            return None
        self._drop_ended()
        while len(self._sessions) >= SESSION_LIMIT:
            del self._sessions[next(iter(self._sessions))]
        session_id = secrets.token_urlsafe(ID_BYTES)
        session = Session(operator, secrets.token_urlsafe(ID_BYTES), trio.current_time() + LIFETIME_S)
        self._sessions[_hash(session_id)] = session
        return session_id, session

    def find(self, session_id: str | None) -> Session | None:
        """The session with this id, if it has not ended."""
        if session_id is None:
            return None
        hashed = _hash(session_id)
        session = self._sessions.get(hashed)
        if session is None or self.is_active(session):
            return session
        del self._sessions[hashed]
        return None

    def is_active(self, session: Session) -> bool:
        """Whether the session has neither expired nor lost its key nor been ended."""
        return trio.current_time() < session.expires_at and session.operator.is_valid()

    def is_open(self, session_id: str) -> bool:
        """Whether the session with this id still exists and is active."""
        return self.find(session_id) is not None

    def end(self, session_id: str | None) -> None:
        """Sign out. An unknown id is no error."""
        if session_id is not None:
            self._sessions.pop(_hash(session_id), None)

    def _drop_ended(self) -> None:
        self._sessions = {key: session for key, session in self._sessions.items() if self.is_active(session)}


def cookie_name(port: int | None) -> str:
    """The name of the cookie. Browsers share cookies between the ports of a host, so each port has its own name."""
    return f"cortex_session_{port or 0}"


def session_id_of(cookies: Iterable[str], port: int | None) -> str | None:
    """The session id in `cookie` headers; None if there is none."""
    wanted = cookie_name(port)
    for header in cookies:
        for pair in header.split(";"):
            name, _, value = pair.strip().partition("=")
            if name == wanted and value:
                return value
    return None


def _hash(session_id: str) -> bytes:
    """Of an id: what is kept in memory cannot be used to sign in."""
    return hashlib.sha256(session_id.encode("utf-8", "replace")).digest()
