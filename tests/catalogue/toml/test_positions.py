"""Lines of keys: exact on documents written by hand, complete on generated documents."""

import tomli
from hypothesis import given
from hypothesis import strategies as st

from catalogue.toml.positions import scan

AWKWARD = '''\
# a comment = with an equals sign
title = "one [not.a.header]" # and another = one

[a . "b.c" .d]
text = """
[no.header]
key = "no key" \\"""
""""" # five quotes: two of them belong to the string
raw = \'\'\'
]] }} = # \\'\'\'
'lit.eral'.sub = 'x # y'
"esc\\u0061ped" = 1979-05-27 07:32:00 # a date with a space
list = [ # opens
  1, "two", [3,
    4], {x = 1, y = [
    5]}, # trailing comma
]

[[many]]
n = 1
[many.inner]
deep.er = true
[[many]]

[[many.more]]
[a]
last = {}
'''


def test_lines_of_an_awkward_document():
    """Every notation of TOML, with the line that an editor shows."""
    tomli.loads(AWKWARD)
    line = scan(AWKWARD).line

    assert line(("title",)) == 2
    assert line(("a", "b.c", "d")) == 4
    assert line(("a", "b.c", "d", "text")) == 5
    assert line(("a", "b.c", "d", "raw")) == 9
    assert line(("a", "b.c", "d", "lit.eral", "sub")) == 11
    assert line(("a", "b.c", "d", "escaped")) == 12
    assert line(("a", "b.c", "d", "list", 0)) == 14
    assert line(("a", "b.c", "d", "list", 2, 1)) == 15
    assert line(("a", "b.c", "d", "list", 3, "y", 0)) == 16
    assert line(("many", 0)) == 19
    assert line(("many", 0, "inner", "deep", "er")) == 22
    assert line(("many", 1)) == 23
    assert line(("many", 1, "more", 0)) == 25
    assert line(("a",)) == 26  # its own header, though [a.b.d] was there before


def test_line_of_a_missing_key_is_its_tables():
    """That is where an operator has to add the key."""
    positions = scan("[one]\nx = 1\n\n[[two]]\n[[two]]\n")

    assert positions.line(("one", "y")) == 1
    assert positions.line(("two", 1, "id")) == 5
    assert positions.line(("three",)) is None


def test_windows_line_ends_count_once():
    """CRLF ends one line, not two."""
    assert scan("a = 1\r\n\r\n[b]\r\nc = '''\r\n'''\r\nd = 2\r\n").line(("b", "d")) == 6


def paths_of(value, path=()):
    """Every key path and array index of a parsed document."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for part, below in items:
        yield (*path, part)
        yield from paths_of(below, (*path, part))


BARE = st.sampled_from(["a", "b", "c-d", "_1", "12"])
QUOTED = st.sampled_from(['"a"', "'b'", '"x.y"', "'#'", '""', '"\\u0061"', '"\\"="', '"]"', "'\\'", '"é"'])
KEY = st.lists(BARE | QUOTED, min_size=1, max_size=3).map(" . ".join)
STRINGS = st.sampled_from(
    [
        '"s"', '"\\\\"', '"\\""', "'\\'", '""', "''", '"# no"', "'[x]'", '"""a"""', '"""\n"" """', '""""a"""""',
        "'''\n'a''b'''''", '"""\\\n  x\\""""', '"""]\na = 1\n"""', "''''''",
    ]
)  # fmt: skip
SCALARS = STRINGS | st.sampled_from(["1", "-1.5e3", "true", "inf", "0xff", "1979-05-27 07:32:00", "07:32:00", "1_000"])
GAP = st.sampled_from(["", " ", "\n", " # c ] } ,\n", "\t\r\n"])


def containers(inner):
    arrays = st.tuples(st.lists(st.tuples(GAP, inner, GAP).map("".join), max_size=3), st.sampled_from(["", ","]), GAP)
    pair = st.tuples(KEY, inner).map(" = ".join)
    return arrays.map(lambda parts: f"[{','.join(parts[0])}{parts[1] if parts[0] else ''}{parts[2]}]") | st.lists(
        pair, max_size=3
    ).map(lambda pairs: "{ " + ", ".join(pairs) + " }")


VALUE = st.recursive(SCALARS, containers, max_leaves=6)
STATEMENT = st.one_of(
    KEY.map("[{}] # header".format),
    KEY.map("[[ {} ]]".format),
    st.tuples(KEY, VALUE).map(" = ".join),
    st.sampled_from(["", "# [x]", "  \t"]),
)


@st.composite
def documents(draw):
    """Valid TOML: random statements, without those that tomli refuses after the earlier ones."""
    text = ""
    for statement in draw(st.lists(STATEMENT, max_size=12)):
        longer = text + statement + draw(st.sampled_from(["\n", "\r\n", "\n\n"]))
        try:
            tomli.loads(longer)
        except tomli.TOMLDecodeError:
            continue
        text = longer
    return text


@given(documents())
def test_scanner_finds_exactly_the_keys_tomli_finds(text):
    """The scanner and tomli agree on the content of a document."""
    assert set(scan(text).paths()) == set(paths_of(tomli.loads(text)))


@given(st.text() | st.text(alphabet="[]{}=.,\"'\\#\n ab1", max_size=40))
def test_scanner_does_not_raise_on_anything(text):
    """For text that is not TOML it knows fewer lines; it does not fail."""
    scan(text).line(("a",))


def test_scanner_is_linear_in_deep_and_long_documents():
    """The deepest nesting of tomli, and a string of a megabyte: no recursion, no backtracking."""
    deep = "a = " + "[" * 400 + "]" * 400
    long = 'b = """' + '""\\\\' * 250_000 + '"""'
    keys = "[" + ".".join(["k"] * 1000) + "]"
    text = f"{deep}\n{long}\n{keys}"
    tomli.loads(text)

    positions = scan(text)

    assert positions.line(("a", *[0] * 399)) == 1
    assert positions.line(("k",) * 1000) == 3
