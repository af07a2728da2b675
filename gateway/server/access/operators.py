"""Operators of the console: whose key a browser has signed in with."""

from __future__ import annotations

from collections.abc import Callable

from gateway.access.admission import TOKEN_KEY, Access
from gateway.access.keys.key import Key
from gateway.errors import InvalidApiKey, ServiceUnavailable, VerbNotAllowed
from gateway.server.console.sessions import Operator

__all__ = ["identify_by", "inference_key_of", "key_of", "may_infer_by"]


def identify_by(access: Access) -> Callable[[str], Operator | None]:
    """What tells whose key a text is; None if it is no key, or its key lacks the verb `read`."""

    def identify(text: str) -> Operator | None:
        header = (b"authorization", b"Bearer " + text.encode("utf-8", "replace"))
        try:
            key = access.authenticate_operator([header], "read")
        except (InvalidApiKey, ServiceUnavailable, VerbNotAllowed):
            return None
        if key is TOKEN_KEY:
            return Operator(key.name, key.verbs, lambda: True)

        def is_valid() -> bool:
            """The key is still in force, and has the verbs that it had."""
            stored = access.table.by_id(key.id)
            return stored is not None and stored.key.verbs == key.verbs and access.table.is_active(stored.key)

        return Operator(key.name, key.verbs, is_valid, key.id)

    return identify


def may_infer_by(access: Access) -> Callable[[Operator], bool]:
    """What tells whether an operator may use the playground. In open mode that needs no key, but a key counts."""
    return lambda operator: "infer" in operator.verbs or (access.mode == "open" and operator.key_id is None)


def inference_key_of(operator: Operator, access: Access) -> Key | None:
    """The key by which the playground's requests are checked; None in open mode for the admin token, which is none."""
    return None if operator.key_id is None and access.mode == "open" else key_of(operator, access)


def key_of(operator: Operator, access: Access) -> Key:
    """The key of an operator whose session is active, as it is now."""
    stored = None if operator.key_id is None else access.table.by_id(operator.key_id)
    return TOKEN_KEY if stored is None else stored.key
