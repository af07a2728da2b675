"""Runs a function that a model wrote, on test cases: only what a short list of syntax and names allows, and in a cage.

The code comes from a model, so it is not trusted. Before it runs, its syntax tree is compared with a list of what the
questions need: no imports, no names or attributes beyond the listed ones, so nothing leads to a file, a process or the
network. It then runs in a process of its own without environment, with limits on CPU time, memory and files.
"""

from __future__ import annotations

import ast
import json
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

__all__ = ["why_code_fails"]

RUN_WITHIN_S = 20.0  # of the whole process; its limit of CPU time ends it earlier, unless the machine is very busy
ENDLESS = "it does not end"
CODE_LIMIT = 4000  # characters; the tasks take a few lines

_BUILTINS = [
    "abs", "all", "any", "bool", "chr", "dict", "divmod", "enumerate", "filter", "float", "int", "isinstance",
    "iter", "len", "list", "map", "max", "min", "next", "ord", "pow", "range", "reversed", "round", "set", "sorted",
    "str", "sum", "tuple", "zip", "True", "False", "None", "ValueError", "TypeError", "IndexError", "StopIteration",
]  # fmt: skip
_METHODS = [
    "add", "append", "casefold", "copy", "count", "difference", "discard", "extend", "find", "get", "index",
    "insert", "intersection", "isalnum", "isalpha", "isdigit", "islower", "isspace", "isupper", "items", "join",
    "keys", "lower", "lstrip", "pop", "remove", "replace", "reverse", "rstrip", "setdefault", "sort", "split",
    "splitlines", "startswith", "endswith", "strip", "swapcase", "title", "union", "update", "upper", "values",
    "zfill",
]  # fmt: skip
_FORBIDDEN_NODES = (ast.Import, ast.ImportFrom, ast.Global, ast.Nonlocal, ast.ClassDef, ast.Await, ast.AsyncFunctionDef)

_RUNNER = """
import json, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (1, 1))
resource.setrlimit(resource.RLIMIT_AS, (256 << 20, 256 << 20))
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
task = json.load(sys.stdin)
import builtins
names = {name: getattr(builtins, name) for name in task["builtins"]}
space = {"__builtins__": names, "__name__": "answer"}
exec(compile(task["code"], "answer", "exec"), space)
results = [space[task["function"]](*arguments) for arguments in task["arguments"]]
print(json.dumps(results))
"""


def why_code_fails(answer: str, function: str, cases: Sequence[tuple[tuple[Any, ...], Any]]) -> str | None:
    """Why the code in an answer is wrong, None if it is right. Blocks for as long as the code runs.

    Args:
        answer: The model's text; the code is in its first fenced block, or is all of it.
        function: The function that the code must define.
        cases: The arguments and the expected value of each call, as JSON knows them.
    """
    code = _code_in(answer)
    if (reason := _refusal(code, function)) is not None:
        return reason
    task = {
        "code": code,
        "function": function,
        "builtins": _BUILTINS,
        "arguments": [arguments for arguments, _ in cases],
    }
    try:
        with tempfile.TemporaryDirectory(prefix="cortex-bench-code-") as folder:
            done = subprocess.run(  # noqa: S603 - the code in it was checked
                [sys.executable, "-I", "-S", "-c", _RUNNER],
                input=json.dumps(task),
                capture_output=True,
                text=True,
                timeout=RUN_WITHIN_S,
                env={},
                cwd=folder,
                check=False,
            )
    except subprocess.TimeoutExpired:
        return ENDLESS
    if done.returncode in {-signal.SIGKILL, -signal.SIGXCPU}:
        return ENDLESS
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        return f"it fails: {last[0][:80]}"
    return _first_difference(function, cases, json.loads(done.stdout))


def _first_difference(
    function: str, cases: Sequence[tuple[tuple[Any, ...], Any]], results: Sequence[Any]
) -> str | None:
    for (arguments, expected), result in zip(cases, results, strict=True):
        if type(result) is not type(expected) or result != expected:
            given = ", ".join(map(repr, arguments))
            return f"{function}({given}) returns {result!r}"[:100]
    return None


def _code_in(answer: str) -> str:
    fenced = re.search(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", answer, re.DOTALL)
    return (fenced[1] if fenced else answer).strip()


def _refusal(code: str, function: str) -> str | None:
    """Why the code is not run; None if it may be."""
    if len(code) > CODE_LIMIT:
        return f"it has more than {CODE_LIMIT} characters"
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "it is not Python"
    if not any(isinstance(node, ast.FunctionDef) and node.name == function for node in tree.body):
        return f"it does not define {function}"
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    own |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    own |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    for node in ast.walk(tree):
        if (used := _not_allowed(node, own | set(_BUILTINS))) is not None:
            return f"it uses {used}, which the test does not allow"
    return None


def _not_allowed(node: ast.AST, names: set[str]) -> str | None:
    match node:
        case ast.Attribute(attr=name) if name not in _METHODS:
            return f".{name}"
        case ast.Name(id=name) if name not in names or name.startswith("__"):
            return name
        case ast.FunctionDef(name=name) | ast.arg(arg=name) if name.startswith("__"):
            return name
        case ast.Constant(value=str() as text) if "__" in text:
            return "__ in a string"
    return type(node).__name__ if isinstance(node, _FORBIDDEN_NODES) else None
