"""What simulated models generate: tokens, answers, reasoning, vectors and scores. Deterministic, pure, no I/O."""

from __future__ import annotations

import hashlib
import math
import random
import re
from array import array
from collections.abc import Sequence
from functools import lru_cache

PROBE = "What is the capital of Georgia? Answer with the city only."
PROBE_ANSWER = "Tbilisi"

# A token is up to four letters or one sign, with the space before it: about what BPE yields on English, and the
# tokens of a text joined are the text again.
_TOKEN = re.compile(r"\s*(?:\w{1,4}|[^\w\s])|\s+")
_CAPITAL = re.compile(r"capital of (\w+)", re.IGNORECASE)
_LENGTH = re.compile(r"(\d{1,6})[ -](?:words?|tokens?)\b", re.IGNORECASE)
_REPEAT = re.compile(r"\brepeat:\s*(.+)", re.IGNORECASE | re.DOTALL)

_CAPITALS = {
    "armenia": "Yerevan",
    "france": "Paris",
    "georgia": PROBE_ANSWER,
    "germany": "Berlin",
    "italy": "Rome",
    "japan": "Tokyo",
    "norway": "Oslo",
}
# At most four letters each, so that one word is one token.
_VOCABULARY = (
    "able amid arch atom back bark base beam bird blue boat bold book calm cape city clay clip coal code cold cool "
    "core dawn deep door dusk east edge even fair farm fern fire flow fold fort full gate gold gray half hand high "
    "hill home iron isle jade keen kind lake lamp land leaf line loom main mark mild mill moon moss near nest node "
    "noon oak old open over palm path pine port rain reed ring rise road root rose salt sand seed ship silk sky "
    "slow snow soft song star stem stir tall tide time town tree true vale vast view wall warm wave west wide wild "
    "wind wing wise wood yard year"
)
_WORDS = _VOCABULARY.split()


def tokens(text: str) -> list[str]:
    """The tokens of a text; joined they are the text again."""
    return _TOKEN.findall(text)


def answer(model_id: str, prompt: str, last_user: str) -> str:
    """The model's answer to a prompt whose last user message is `last_user`.

    It knows some capitals, repeats what follows `repeat:`, and writes as many words as it is asked for ("300 words").
    Anything else yields text derived from model and prompt, so that two models differ and one never does.
    """
    if capital := _capital(last_user):
        return capital
    if repeat := _REPEAT.search(last_user):
        return repeat.group(1)
    rng = random.Random(_seed(model_id, prompt))  # noqa: S311 - must be repeatable, need not be secret
    wanted = _LENGTH.search(last_user)
    if wanted is not None:
        return " ".join(rng.choices(_WORDS, k=int(wanted.group(1))))
    words = " ".join(rng.choices(_WORDS, k=rng.randint(20, 50)))
    return f"{model_id.rpartition('/')[2]} says: {words}."


def reasoning(model_id: str, prompt: str) -> str:
    """The model's reasoning before its answer."""
    rng = random.Random(_seed(model_id, "thinking", prompt))  # noqa: S311 - as above
    return "Let me see. " + " ".join(rng.choices(_WORDS, k=rng.randint(12, 24)))


def identifier(prefix: str, *parts: str) -> str:
    """An id such as `chatcmpl-5f0c…`, the same for the same parts."""
    return f"{prefix}-{_digest(*parts).hex()[:24]}"


@lru_cache(maxsize=256)
def embedding(model_id: str, text: str, dim: int) -> array[float]:
    """A unit vector of 32-bit floats; texts that share tokens are near each other (feature hashing)."""
    vector = [0.0] * dim
    for token in tokens(text.lower()) or [""]:
        digest = _digest(model_id, token.strip())
        for at in range(0, 32, 4):
            place = int.from_bytes(digest[at : at + 4], "little")
            vector[place % dim] += 1.0 if place & 0x80000000 else -1.0
    norm = math.sqrt(sum(value * value for value in vector))
    if norm == 0.0:  # tokens that cancel each other out exactly
        vector[0] = norm = 1.0
    return array("f", (value / norm for value in vector))


def relevance(query: str, document: str) -> float:
    """How well a document fits a query, 0 to 1: the share of the query's tokens it has."""
    wanted = {token.strip() for token in tokens(query.lower())}
    found = {token.strip() for token in tokens(document.lower())}
    return len(wanted & found) / len(wanted) if wanted else 0.0


def common_prefix(a: Sequence[str], b: Sequence[str]) -> int:
    """How many leading tokens two prompts share."""
    for at, (one, other) in enumerate(zip(a, b, strict=False)):
        if one != other:
            return at
    return min(len(a), len(b))


def _capital(question: str) -> str | None:
    found = _CAPITAL.search(question)
    city = _CAPITALS.get(found.group(1).lower()) if found else None
    if found is None or city is None:
        return None
    return city if "only" in question else f"The capital of {found.group(1)} is {city}."


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).digest()


def _seed(*parts: str) -> int:
    return int.from_bytes(_digest(*parts)[:8], "little")
