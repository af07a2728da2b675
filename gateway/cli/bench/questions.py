"""The questions: short, with one right answer each, of six kinds. They are in `questions.toml`.

Each has a check that returns None for a right answer, else what was wrong with it. Only the check of code does more
than compare: it runs the code (`code_check.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, TypeAlias, get_args

import tomli

from gateway.cli.bench.code_check import why_code_fails

__all__ = ["KINDS", "PROBE", "Kind", "Question", "Reply", "questions"]

Kind: TypeAlias = Literal["facts", "arithmetic", "JSON by schema", "tool choice", "code", "long context"]
KINDS: tuple[Kind, ...] = get_args(Kind)
LONG_SENTENCES = 45  # about 650 tokens

_Entry: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model answered: its text without reasoning, and the tools it called, with decoded arguments."""

    text: str = ""
    calls: tuple[tuple[str, dict[str, Any]], ...] = ()


Check: TypeAlias = Callable[[Reply], str | None]


@dataclass(frozen=True, slots=True)
class Question:
    """One question. `expected` says in words what is right. `context` is a long text to put before the prompt."""

    id: str
    kind: Kind
    prompt: str
    expected: str
    check: Check
    tools: tuple[dict[str, Any], ...] = ()
    context: str = ""

    def full_prompt(self, nonce: str) -> str:
        """The prompt, after its context if there is one.

        A context begins with `nonce`, which is another one in each run: an engine's prefix cache must not answer a
        second run.
        """
        return f"Notes of watch {nonce}.\n{self.context}\n{self.prompt}" if self.context else self.prompt


# Checks ...............................................................................................................


def _names(*accepted: str) -> Check:
    """The answer contains one of these words, in any case."""
    pattern = re.compile(r"\b(?:" + "|".join(map(re.escape, accepted)) + r")\b", re.IGNORECASE)
    return lambda reply: None if pattern.search(reply.text) else "the answer does not contain it"


def _number(value: float) -> Check:
    """The last number of the answer is this one."""

    def check(reply: Reply) -> str | None:
        found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", reply.text)
        if not found:
            return "the answer has no number"
        last = float(found[-1].replace(",", ""))
        return None if abs(last - value) < 1e-6 * max(1.0, abs(value)) else f"the answer ends with {found[-1]}"

    return check


def _json(expected: dict[str, Any]) -> Check:
    """The answer has one JSON object with exactly these keys and values; text is compared without case."""

    def check(reply: Reply) -> str | None:
        found = _first_object(reply.text)
        if found is None:
            return "the answer has no JSON object"
        if found.keys() != expected.keys():
            return f"its keys are {', '.join(sorted(found)) or 'none'}"
        wrong = [key for key, value in expected.items() if not _equal(found[key], value)]
        return f"{wrong[0]} is {json.dumps(found[wrong[0]])[:60]}" if wrong else None

    return check


def _equal(found: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return isinstance(found, str) and found.strip().casefold() == expected.casefold()
    if isinstance(expected, list):
        return isinstance(found, list) and len(found) == len(expected) and all(map(_equal, found, expected))
    return type(found) is type(expected) and bool(found == expected)


def _first_object(text: str) -> dict[str, Any] | None:
    decoder = json.JSONDecoder()
    for start in (match.start() for match in re.finditer(r"\{", text)):
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    return None


def _calls(name: str, **arguments: Any) -> Check:
    """The model calls this tool, once, with these arguments; text is compared without case."""

    def check(reply: Reply) -> str | None:
        if len(reply.calls) != 1:
            return f"it called {len(reply.calls)} tools"
        called, given = reply.calls[0]
        if called != name:
            return f"it called {called}"
        wrong = [key for key, value in arguments.items() if not _argument_fits(given.get(key), value)]
        return f"{wrong[0]} is {json.dumps(given.get(wrong[0]))[:60]}" if wrong else None

    return check


def _argument_fits(found: Any, expected: Any) -> bool:
    if isinstance(expected, str):
        return isinstance(found, str) and expected.casefold() in found.casefold()
    return isinstance(found, int | float) and not isinstance(found, bool) and float(found) == float(expected)


def _no_call(*accepted: str) -> Check:
    """The model answers by itself."""
    contains = _names(*accepted)
    return lambda reply: f"it called {reply.calls[0][0]}" if reply.calls else contains(reply)


def _passes(function: str, *cases: tuple[tuple[Any, ...], Any]) -> Check:
    """The function in the answer returns the expected value for every case."""
    return lambda reply: why_code_fails(reply.text, function, cases)


# The questions ........................................................................................................

PROBE = Question(
    "probe",
    "facts",
    "What is the capital of Georgia? Answer with the city only.",
    "Tbilisi",
    _names("Tbilisi"),
)
"""The question behind the reference times; see `figures.py`."""


def _tool(name: str, description: str, **properties: str) -> dict[str, Any]:
    parameters = {
        "type": "object",
        "properties": {key: {"type": kind} for key, kind in properties.items()},
        "required": list(properties),
    }
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


_TOOLS = (
    _tool("get_weather", "Get the weather forecast for a city.", city="string"),
    _tool("set_timer", "Start a countdown.", minutes="number"),
    _tool("convert_currency", "Convert an amount.", amount="number", source="string", target="string"),
    _tool("send_email", "Send an e-mail.", recipient="string", subject="string"),
    _tool("play_music", "Play a song.", title="string"),
)


def questions(per_kind: int | None = None) -> list[Question]:
    """All questions, kinds in turn; or the first `per_kind` of each kind. Those that take longest come first."""
    bank = tomli.loads(resources.files(__package__).joinpath("questions.toml").read_text(encoding="utf-8"))
    by_kind = [[make(entry) for entry in bank[table]][:per_kind] for table, make in _MAKERS.items()]
    return [question for group in zip(*by_kind, strict=True) for question in group]


def _fact(entry: _Entry) -> Question:
    return Question(entry["id"], "facts", entry["prompt"], entry["accepted"][0], _names(*entry["accepted"]))


def _arithmetic(entry: _Entry) -> Question:
    return Question(entry["id"], "arithmetic", entry["prompt"], f"{entry['value']:g}", _number(entry["value"]))


def _object(entry: _Entry) -> Question:
    prompt = f"{entry['prompt']}\nAnswer with a JSON object of this form, and nothing else: {entry['schema']}"
    return Question(entry["id"], "JSON by schema", prompt, json.dumps(entry["value"]), _json(entry["value"]))


def _tool_choice(entry: _Entry) -> Question:
    if "tool" not in entry:
        expected, check = f"no tool; {entry['accepted'][0]}", _no_call(*entry["accepted"])
    else:
        arguments = ", ".join(f"{key} {value}" for key, value in entry["arguments"].items())
        expected, check = f"{entry['tool']}: {arguments}", _calls(entry["tool"], **entry["arguments"])
    return Question(entry["id"], "tool choice", entry["prompt"], expected, check, _TOOLS)


def _code(entry: _Entry) -> Question:
    signature, cases = entry["function"], [(tuple(test[:-1]), test[-1]) for test in entry["tests"]]
    prompt = f"Write a Python function {signature} that {entry['task']}. Answer with the code only, without imports."
    check = _passes(signature.partition("(")[0], *cases)
    return Question(entry["id"], "code", prompt, f"a function that passes {len(cases)} tests", check)


def _long(entry: _Entry) -> Question:
    filler = [f"The lamp in hall {number} was lit at dusk and put out at dawn." for number in range(LONG_SENTENCES)]
    filler.insert(round(entry["place"] * len(filler)), entry["fact"])
    check = _names(*entry["accepted"])
    return Question(entry["id"], "long context", entry["prompt"], entry["accepted"][0], check, context=" ".join(filler))


_MAKERS: dict[str, Callable[[_Entry], Question]] = {
    "long": _long,
    "code": _code,
    "tools": _tool_choice,
    "json": _object,
    "arithmetic": _arithmetic,
    "facts": _fact,
}
