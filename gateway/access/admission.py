"""The one object by which the ports and the request path check access."""

from __future__ import annotations

from collections.abc import Sequence
from hmac import compare_digest
from math import inf
from typing import Literal

from gateway.access.keys import scope
from gateway.access.keys.key import Key, Verb
from gateway.access.keys.key_table import KeyTable
from gateway.asgi import DirectExchange
from gateway.errors import InvalidApiKey, ModelNotAllowed, VerbNotAllowed

__all__ = ["TOKEN_KEY", "Access", "require_verb"]

_Headers = Sequence[tuple[bytes, bytes]]
_KEPT = "cortex.key"
_CREDENTIAL_HEADERS = frozenset({b"authorization", b"x-api-key", b"api-key"})

TOKEN_KEY = Key(id="admin", name="admin", verbs=frozenset({"read", "operate", "keys"}))
"""What `[admin] token` counts as."""


class Access:
    """Who sent a request, and whether that key may do what it asks for. Synchronous; waits for nothing.

        key = access.authenticate(headers)       # Key, or None: open mode, without a key. 401
        access.authorize(key, name)              # 403 unless the key may use the model or alias

    Args:
        table: The keys in force.
        mode: `open` lets requests without a key pass; what begins with `ctx_` is checked in both modes.
        admin_token: `[admin] token`, a key with the verbs of `TOKEN_KEY`; None for none.
    """

    def __init__(
        self, table: KeyTable | None = None, *, mode: Literal["keys", "open"] = "open", admin_token: str | None = None
    ) -> None:
        self.table = KeyTable() if table is None else table
        self.mode = mode
        self._token = None if admin_token is None else admin_token.encode()

    def authenticate(self, headers: _Headers, exchange: DirectExchange | None = None) -> Key | None:
        """The key of a request to the public port; None for a request without one in open mode.

        Args:
            headers: The request's.
            exchange: Keeps the key for the connection's next requests with the same headers, until the table changes:
                they need no SHA-256.

        Raises:
            InvalidApiKey: The key is unknown, expired or revoked, or there are several; in keys mode, there is none.
        """
        if exchange is not None and _KEPT in exchange.derived:
            kept: tuple[int, Key | None, float] = exchange.derived[_KEPT]
            if kept[0] == self.table.version and (kept[2] == inf or kept[2] > self.table.unix_time()):
                return kept[1]
        secret = _secret_in(headers)
        if secret is not None:
            key, until = self.table.look_up(secret)
            if exchange is not None:
                exchange.derived[_KEPT] = (self.table.version, key, until)
            return key
        if self.mode == "open":
            if exchange is not None:
                exchange.derived[_KEPT] = (self.table.version, None, inf)
            return None
        if self._has_token(headers):
            return TOKEN_KEY
        raise _no_key(headers)

    def authenticate_operator(self, headers: _Headers, verb: Verb) -> Key:
        """The key of a request to the admin API, which needs one with this verb in both modes.

        Raises:
            InvalidApiKey: As `authenticate`.
            VerbNotAllowed: The key lacks the verb.
        """
        secret = _secret_in(headers)
        if secret is not None:
            key = self.table.find(secret)
        elif self._has_token(headers):
            key = TOKEN_KEY
        else:
            raise _no_key(headers, f"NAME --verbs {verb}")
        require_verb(key, verb)
        return key

    def authorize(self, key: Key | None, name: str) -> None:
        """Check that the key may send inference requests, and use the model or alias with this name.

        `name` is what the client asks for: what an alias leads to, and its fallbacks, are the operator's choice.

        Raises:
            VerbNotAllowed, ModelNotAllowed: By their names.
        """
        if key is None or key.is_unrestricted:
            return
        require_verb(key, "infer")
        if not scope.allows(key.may, name):
            raise ModelNotAllowed(
                f"the key {key.name!r} may not use the model '{name}'; GET /v1/models lists those it may use",
                param="model",
            )

    def _has_token(self, headers: _Headers) -> bool:
        if self._token is None:
            return False
        given = [token for name, value in headers if name == b"authorization" and (token := _bearer(value)) is not None]
        return len(given) == 1 and compare_digest(given[0], self._token)


def require_verb(key: Key, verb: Verb) -> None:
    """Raises VerbNotAllowed unless the key has the verb."""
    if verb not in key.verbs:
        has = ", ".join(sorted(key.verbs)) or "none"
        raise VerbNotAllowed(f"this needs a key with the verb `{verb}`; {key.name!r} has {has}")


def _secret_in(headers: _Headers) -> bytes | None:
    """The one credential that begins with `ctx_`. Raises InvalidApiKey if two of them differ."""
    found: bytes | None = None
    for name, value in headers:
        if name in _CREDENTIAL_HEADERS:
            if name != b"authorization":
                token: bytes | None = value.strip()
            else:
                token = (
                    value[7:].strip() if value[:11] == b"Bearer ctx_" else _bearer(value)
                )  # nearly all are spelled so
            if token is None or not token.startswith(b"ctx_"):
                continue
            if found is not None and found != token:
                raise InvalidApiKey("the request has two keys that differ: send one of them")
            found = token
    return found


def _bearer(value: bytes) -> bytes | None:
    """The token of the scheme Bearer, in any case (RFC 9110, section 11.1); None for another scheme."""
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def _no_key(headers: _Headers, arguments: str = "NAME") -> InvalidApiKey:
    has_others = any(name in _CREDENTIAL_HEADERS for name, _ in headers)
    problem = "the credentials are no key of this gateway" if has_others else "this needs a key"
    return InvalidApiKey(f"{problem}: send authorization: Bearer ctx_…; `cortex key create {arguments}` creates one")
