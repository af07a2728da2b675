"""Text from outside made fit for a terminal and a log: control characters and terminal escapes are shown, not sent, and
secrets of keys are left out.

Names of models, statuses and error texts come from clients and neurons. A terminal obeys escape sequences in them, and
Unicode's marks for the writing direction reorder what a person reads.
"""

from __future__ import annotations

import re

__all__ = ["hide_secret", "one_line", "printable", "printable_json"]

# C0 and C1 controls, line and paragraph separators, marks and overrides of the writing direction, lone surrogates.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")
_UNSAFE_IN_A_LINE = re.compile(_UNSAFE.pattern.replace("\x00-\x08\x0b-\x1f", "\x00-\x1f"))


def printable(text: str) -> str:
    r"""The text with every unsafe character as a Python escape (`\\x1b`). Line ends and tabs stay."""
    return text if text.isprintable() else _UNSAFE.sub(_escape, text)


def one_line(text: str) -> str:
    """As `printable`, with line ends and tabs escaped too: for a name, which must not look like two lines."""
    return text if text.isprintable() else _UNSAFE_IN_A_LINE.sub(_escape, text)


def printable_json(text: str) -> str:
    """JSON with the unsafe characters of its strings as JSON escapes. JSON itself escapes only the C0 controls."""
    return _UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode("ascii")


_SECRET = re.compile(r"(ctx_[0-9A-Za-z]{1,32}_)[0-9A-Za-z]{16,}")


def hide_secret(text: str) -> str:
    """The text without the secret part of any `ctx_<id>_<secret>` in it. The id stays: it tells which key to rotate.

    Clients put their keys into paths, model names and request ids by mistake.
    """
    return _SECRET.sub(r"\1…", text) if "ctx_" in text else text
