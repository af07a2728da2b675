"""Scopes: which names a glob allows, and which globs contain others."""

import fnmatch
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.access.keys.scope import allows, contains


@pytest.mark.parametrize(
    ("glob", "name", "expected"),
    [
        ("*", "anything/at all", True),
        ("helexa/*", "helexa/small", True),
        ("helexa/*", "helexa/a/b", True),
        ("helexa/*", "helexa/", True),
        ("helexa/*", "helexa", False),
        ("helexa/*", "xhelexa/small", False),
        ("helexa/*", "Helexa/small", False),
        ("helexa/*", "\nhelexa/small", False),
        ("helexa/small", "helexa/small\n", False),
        ("*-mini", "a-mini", True),
        ("*-mini", "a-mini-max", False),
        ("a*a", "a", False),  # the two ends do not overlap
        ("a*a", "aa", True),
        ("a**b", "a\nb", True),
        ("*b*c", "abcabc", True),
        ("q?", "q1", True),
        ("q?", "q", False),
        ("q?", "q12", False),
        ("?", "\n", True),
        ("claude[1m]", "claude[1m]", True),
        ("claude[1m]", "claude1", False),  # brackets are no set of characters
        ("[!x]*", "a", False),
        ("a.c", "abc", False),
        ("a|b", "a", False),
        ("(a)", "a", False),
        ("a\\*", "a*", False),
        ("a\\*", "a\\b", True),
        ("", "x", False),
    ],
)
def test_globs(glob, name, expected):
    assert allows((glob,), name) is expected
    assert allows(("other", glob), name) is expected


@given(st.text("ab*?", max_size=8), st.text("ab", max_size=12))
def test_globs_are_those_of_a_shell(glob, name):
    assert allows((glob,), name) == bool(re.match(fnmatch.translate(glob), name))


def test_no_glob_takes_long():
    """A client chooses the name; a backtracking matcher takes years for this one."""
    began = time.process_time()
    assert not allows(("a*" * 120 + "b",), "a" * 100_000)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (("*",), ("*",), True),
        (("*",), ("a*", "b"), True),
        (("a*",), ("a*",), True),
        (("a*",), ("ab*", "a", "a?"), True),
        (("a*",), ("*",), False),
        (("a*",), ("*a",), False),
        (("a*",), ("a*", "b"), False),
        (("a*", "b"), ("a1", "b"), True),
        (("a?",), ("a?", "ab"), True),
        (("a?",), ("a*",), False),  # `a*` allows `abc` as well
        (("a*c",), ("a*b*c",), True),
        (("a*c",), ("a*",), False),
    ],
)
def test_contained_globs(outer, inner, expected):
    assert contains(outer, inner) is expected


@given(st.text("ab*?", max_size=6), st.text("ab*?", max_size=6), st.text("ab", max_size=8))
def test_a_contained_glob_allows_no_further_name(outer, inner, name):
    if contains((outer,), (inner,)) and allows((inner,), name):
        assert allows((outer,), name)
