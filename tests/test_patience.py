"""Checks of the tests themselves: none may fail because the machine was busy."""

import ast
from pathlib import Path

from fakes.patience import SAFETY_NET_S

FILES = sorted(Path(__file__).parent.rglob("*.py"))


def too_strict(tree):
    """Lines that give a real process or socket less than the safety net. The autojump clock does not count."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if "autojump_clock" in {argument.arg for argument in function.args.args}:
            continue
        for node in ast.walk(function):
            if isinstance(node, ast.Call):
                named = [keyword.value for keyword in node.keywords if keyword.arg == "timeout"]
                bounds = node.args[:1] if ast.unparse(node.func).endswith("fail_after") else named
                yield from (node.lineno for bound in bounds if _number(bound) < SAFETY_NET_S)


def impatient_clients(tree):
    """Lines where an httpx client has its default timeout, 5 s. (In memory it needs none.)"""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"httpx.Client", "httpx.AsyncClient", *CALLS}:
            named = {keyword.arg for keyword in node.keywords}
            if not named & {"timeout", "transport", None}:
                yield node.lineno


CALLS = {f"httpx.{method}" for method in ("get", "post", "put", "delete", "head", "options", "request", "stream")}


def _number(bound):
    is_number = isinstance(bound, ast.Constant) and isinstance(bound.value, int | float)
    return bound.value if is_number else SAFETY_NET_S  # a named bound is deliberate


def found_by(check):
    """The lines of each file that the check names."""
    found = {str(path): list(check(ast.parse(path.read_text()))) for path in FILES}
    return {path: lines for path, lines in found.items() if lines}


def test_bounds_in_tests_are_safety_nets():
    """A duration that must be short is `measured`, by `best_of`; everything else has `SAFETY_NET_S`."""
    assert found_by(too_strict) == {}


def test_clients_in_tests_have_a_long_timeout():
    """A gateway that stops for a moment does not fail a test."""
    assert found_by(impatient_clients) == {}
