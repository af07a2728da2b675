"""Sessions of browsers: bounded, expiring, bound to a key, and never with an id that a client chose."""

from __future__ import annotations

import trio

from gateway.server.console.sessions import LIFETIME_S, SESSION_LIMIT, Operator, Sessions, cookie_name, session_id_of


class Keys:
    """Knows one key, until it is revoked."""

    def __init__(self):
        self.valid = True

    def identify(self, key):
        return Operator("olga", frozenset({"read"}), lambda: self.valid) if self.valid and key == "right" else None


async def test_session_begins_with_a_valid_key_only(autojump_clock):
    sessions = Sessions(Keys().identify)
    assert sessions.begin("wrong") is None
    session_id, session = sessions.begin("right")
    assert sessions.find(session_id) is session
    assert sessions.find("chosen-by-the-client") is None
    assert sessions.find(None) is None


async def test_session_expires(autojump_clock):
    """Its memory is free at the next sign-in at the latest."""
    sessions = Sessions(Keys().identify)
    session_id, _ = sessions.begin("right")
    await trio.sleep(LIFETIME_S - 1)
    assert sessions.find(session_id) is not None
    await trio.sleep(1)
    assert sessions.find(session_id) is None
    sessions.begin("right")
    assert len(sessions) == 1


async def test_session_ends_with_its_key(autojump_clock):
    keys = Keys()
    sessions = Sessions(keys.identify)
    session_id, _ = sessions.begin("right")
    keys.valid = False
    assert not sessions.is_open(session_id)
    keys.valid = True
    assert not sessions.is_open(session_id)


async def test_number_of_sessions_is_bounded(autojump_clock):
    """The oldest one gives way."""
    sessions = Sessions(Keys().identify)
    ids = [sessions.begin("right")[0] for _ in range(SESSION_LIMIT + 1)]
    assert len(sessions) == SESSION_LIMIT
    assert sessions.find(ids[0]) is None
    assert sessions.find(ids[-1]) is not None


async def test_change_needs_the_value_of_its_own_session(autojump_clock):
    sessions = Sessions(Keys().identify)
    (_, one), (_, other) = sessions.begin("right"), sessions.begin("right")
    assert one.permits_change(one.csrf)
    assert not one.permits_change(other.csrf)
    assert not one.permits_change("")
    assert not one.permits_change("ä")


def test_cookie_of_another_port_is_not_ours():
    """Browsers send the cookies of all ports of a host."""
    header = f"{cookie_name(1)}=a; other=b;{cookie_name(2)}=c; broken"
    assert session_id_of([header], 1) == "a"
    assert session_id_of([header], 2) == "c"
    assert session_id_of([header], 3) is None
    assert session_id_of(["x", header], 2) == "c"
