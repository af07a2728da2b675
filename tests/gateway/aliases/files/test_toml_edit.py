"""gateway.aliases.files.toml_edit: an edit changes one alias, and every other byte stays."""

import difflib

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from gateway.aliases.files import toml_edit
from gateway.aliases.files.toml_edit import CannotEdit, alias_keys, put_alias, remove_alias, restore_alias, set_alias

FILE = b"""\
# The tiers, as agreed on Monday.
[aliases]   # one step each
"helexa/small" = "Qwen/Qwen3-1.7B"   # cheap
'helexa/balanced' = 'Qwen/Qwen3-8B'
inline = { target = "Qwen/Qwen3-8B", sticky = "no" } # k

# What follows is about `large`.
[aliases."helexa/large"]
# why it is this one
target = "Qwen/Qwen3.6-27B"  # see the wiki
sticky = "conversation"

[[models]]
id    = "Qwen/Qwen3-1.7B"   # aligned by hand
harness = "candle"
"""


def changed(before, after):
    """The lines that were removed, and those that were added."""
    lines = [*difflib.unified_diff(before.decode().splitlines(), after.decode().splitlines(), n=0, lineterm="")][2:]
    return [line for line in lines if not line.startswith("@@")]


def aliases(data):
    return tomli.loads(data.decode())["aliases"]


# In place.


@pytest.mark.parametrize(
    ("name", "targets", "swap", "expected"),
    [
        ("helexa/small", {"B": 1}, None, ['"helexa/small" = "B"   # cheap']),
        ("helexa/balanced", {"B": 1}, None, ["'helexa/balanced' = \"B\""]),
        (
            "helexa/small",
            {"A": 90, "B": 10},
            None,
            ['"helexa/small" = { targets = [{ model = "A", weight = 90 }, { model = "B", weight = 10 }] }   # cheap'],
        ),
        ("helexa/small", {"B": 1}, "cold", ['"helexa/small" = { target = "B", swap = "cold" }   # cheap']),
        ("helexa/small", {"B": 1}, "warm", ['"helexa/small" = "B"   # cheap']),
        ("inline", {"B": 1}, None, ['inline = { target = "B", sticky = "no" } # k']),
        (
            "inline",
            {"A": 0.5, "B": 2},
            None,
            ['inline = { targets = [{ model = "A", weight = 0.5 }, { model = "B", weight = 2 }], sticky = "no" } # k'],
        ),
        ("helexa/large", {"B": 1}, None, ['target = "B"  # see the wiki']),
        (
            "helexa/large",
            {"A": 1, "B": 1},
            None,
            ['targets = [{ model = "A", weight = 1 }, { model = "B", weight = 1 }]  # see the wiki'],
        ),
    ],
)
def test_set_changes_one_line(name, targets, swap, expected):
    """In its place, in the same form if that can express it, with its comment."""
    edited = set_alias(FILE, name, targets, swap=swap)

    assert [line[1:] for line in changed(FILE, edited) if line[0] == "+"] == expected
    assert len(changed(FILE, edited)) == 2


def test_default_swap_is_written_only_where_the_key_exists():
    """An alias without the key does not get it."""
    edited = set_alias(FILE, "helexa/large", {"B": 1}, swap="warm")
    assert "swap" not in aliases(edited)["helexa/large"]

    cold = set_alias(FILE, "helexa/large", {"B": 1}, swap="cold")
    assert aliases(set_alias(cold, "helexa/large", {"B": 1}, swap="warm"))["helexa/large"]["swap"] == "warm"


def test_edit_that_would_change_another_alias_is_refused(monkeypatch):
    """TOML Kit has had such faults, so its output is parsed and compared before it is returned."""
    dumps = toml_edit.tomlkit.dumps

    def faulty(document):
        text = dumps(document)
        return text.replace("'Qwen/Qwen3-8B'", "'lost'") if "NEW" in text else text

    monkeypatch.setattr(toml_edit.tomlkit, "dumps", faulty)
    with pytest.raises(CannotEdit, match="cannot be changed without changing more"):
        set_alias(FILE, "helexa/small", {"NEW": 1})


def test_swap_of_a_table_is_added_below_its_other_keys():
    """The operator's table gets one more line."""
    edited = set_alias(FILE, "helexa/large", {"B": 1}, swap="cold")

    assert changed(FILE, edited) == [
        '-target = "Qwen/Qwen3.6-27B"  # see the wiki',
        '+target = "B"  # see the wiki',
        '+swap = "cold"',
    ]


def test_new_alias_is_inserted_below_the_last_one_line_alias():
    """Not below the comment that belongs to the next table."""
    edited = set_alias(FILE, "new/one", {"B": 1})

    assert changed(FILE, edited) == ['+"new/one" = "B"']
    assert edited.decode().splitlines()[5] == '"new/one" = "B"'


def test_new_alias_is_indented_as_its_neighbours_are():
    """It has the same line ending, too."""
    edited = set_alias(b'[aliases]\r\n  a = "A"\r\n\r\n[[models]]\r\nid = "A"\r\n', "b", {"B": 1})

    assert edited == b'[aliases]\r\n  a = "A"\r\n  b = "B"\r\n\r\n[[models]]\r\nid = "A"\r\n'


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"", b'[aliases]\nn = "N"\n'),
        (b'[[models]]\nid = "X"\n', b'[[models]]\nid = "X"\n\n[aliases]\nn = "N"\n'),
        (b'[[models]]\nid = "X"', b'[[models]]\nid = "X"\n[aliases]\nn = "N"\n'),
        (b"[aliases]\n# none yet\n", b'[aliases]\n# none yet\nn = "N"\n'),
        (b'[aliases.x]\ntarget = "A"\n', b'[aliases]\nn = "N"\n\n[aliases.x]\ntarget = "A"\n'),
        (b'aliases.x = "A"\n[[models]]\n', b'aliases.x = "A"\naliases.n = "N"\n[[models]]\n'),
        (b'aliases = { x = "A" } # c\n', b'aliases = { x = "A", n = "N"} # c\n'),
        (b'\xef\xbb\xbf[aliases]\nx = "A"\n', b'\xef\xbb\xbf[aliases]\nx = "A"\nn = "N"\n'),
    ],
)
def test_new_alias_is_added_to_every_form_of_file(before, after):
    """With aliases in any form, or without any."""
    assert set_alias(before, "n", {"N": 1}) == after


def test_name_that_needs_quotes_gets_them():
    """A name cannot inject TOML."""
    name = 'a"b]\n[models'

    assert aliases(set_alias(FILE, name, {"B": 1}))[name] == "B"


# Back.


@pytest.mark.parametrize("name", ["helexa/small", "helexa/balanced", "inline", "helexa/large", "new/one"])
@pytest.mark.parametrize("targets", [{"B": 1}, {"A": 95, "B": 5}])
def test_restore_after_set_is_the_same_file(name, targets):
    """Byte by byte, whatever form the alias had and was given."""
    assert restore_alias(set_alias(FILE, name, targets), name, FILE) == FILE


def test_steps_of_a_rollout_end_in_a_plain_string():
    """A table that expresses no more than a string becomes a string again."""
    step = set_alias(set_alias(FILE, "helexa/small", {"A": 95, "B": 5}), "helexa/small", {"A": 50, "B": 50})

    assert changed(FILE, set_alias(step, "helexa/small", {"B": 100})) == [
        '-"helexa/small" = "Qwen/Qwen3-1.7B"   # cheap',
        '+"helexa/small" = "B"   # cheap',
    ]


@pytest.mark.parametrize(("name", "removed_lines"), [("helexa/small", 1), ("inline", 1), ("helexa/large", 5)])
def test_remove_deletes_only_the_alias(name, removed_lines):
    """Its own lines; comments around it stay."""
    edited = remove_alias(FILE, name)

    assert aliases(edited) == {key: value for key, value in aliases(FILE).items() if key != name}
    assert len(changed(FILE, edited)) == removed_lines
    assert b"What follows is about" in edited


@pytest.mark.parametrize("name", ["helexa/small", "inline", "helexa/large"])
def test_restore_adds_a_removed_alias(name):
    """With the same meaning; its place may differ."""
    assert aliases(restore_alias(remove_alias(FILE, name), name, FILE)) == aliases(FILE)


def test_remove_of_an_unknown_alias_is_a_key_error():
    """Also in an empty file."""
    with pytest.raises(KeyError):
        remove_alias(FILE, "unknown")
    with pytest.raises(KeyError):
        remove_alias(b"", "unknown")


def test_restore_to_a_file_without_the_alias_removes_it():
    """This undoes a `set` of a new name."""
    assert restore_alias(set_alias(FILE, "new", {"B": 1}), "new", FILE) == FILE
    assert restore_alias(FILE, "nobody", FILE) == FILE


def test_aliases_value_that_is_not_a_table_is_not_edited():
    """The edit would have to discard it."""
    with pytest.raises(CannotEdit, match="not a table"):
        set_alias(b'aliases = "x"\n', "a", {"B": 1})


# Any file.

_names = st.text(st.sampled_from("ab./-\"'# é\\"), min_size=1, max_size=6)
_spaces = st.sampled_from(["", " ", "  ", "\t"])
_comments = st.sampled_from(["", "# why", ' # "x" = [1]', "#"])


def _key(name):
    escaped = name.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


@st.composite
def files(draw):
    """A `models.toml` in any layout that an operator could have given it, and the names of its aliases."""
    names = draw(st.lists(_names, min_size=1, max_size=5, unique=True))
    newline = draw(st.sampled_from(["\n", "\r\n"]))
    lines, tables = [draw(_comments), "[aliases]" + draw(_spaces) + draw(_comments)], []
    for name in names:
        kind = draw(st.sampled_from(["plain", "literal", "braces", "table"]))
        space, comment = draw(_spaces), draw(_comments)
        if kind == "table":
            tables += ["", draw(_comments), f"[aliases.{_key(name)}]", f'target{space}= "old"{comment}']
            tables += ['sticky = "none"'] if draw(st.booleans()) else []
        else:
            value = {"plain": '"old"', "literal": "'old'", "braces": '{target = "old", echo = "alias" }'}[kind]
            lines += [draw(_comments)] if draw(st.booleans()) else []
            lines.append(f"{space}{_key(name)} ={space}{value}{comment}")
    if draw(st.booleans()):
        lines += tables
        tables = []
    lines += ["", "[[models]]", f'id{draw(_spaces)}= "old"  # aligned', *tables]
    return newline.join(lines) + draw(st.sampled_from(["", newline])), names


def targets_of(entry):
    """Weight by model, in whatever form the entry has them."""
    if isinstance(entry, str):
        return {entry: None}
    if "target" in entry:
        return {entry["target"]: None}
    return {each["model"]: each["weight"] for each in entry["targets"]}


@given(files(), st.data())
def test_edit_of_any_layout_changes_only_its_alias(file, data):
    """Every line of other entries stays, in order, and restore returns the same file."""
    text, names = file
    name = data.draw(st.sampled_from(names))
    targets = data.draw(st.sampled_from([{"new": 1}, {"old": 95, "new": 5}]))
    before = text.encode()

    after = set_alias(before, name, targets)

    assert targets_of(aliases(after)[name]) == ({"new": None} if len(targets) == 1 else targets)
    assert {key: value for key, value in aliases(after).items() if key != name} == {
        key: value for key, value in aliases(before).items() if key != name
    }
    removed = [line for line in changed(before, after) if line[0] == "-"]
    added = [line for line in changed(before, after) if line[0] == "+"]
    assert len(removed) == 1 == len(added)
    assert restore_alias(after, name, before) == before


# A whole alias from JSON.

NAMES = ["helexa/small", "inline", "helexa/large", 'a"b', "a'b", "a\nb", "", "é", "a.b", "a\\b", "\x00", "\x7f"]
KEYS = [
    {"target": "m"},
    {"target": 'q"\n\\ \x7f'},
    {"targets": [{"model": "m", "weight": 1.5}], "params": {"k\"'\n": {"a": [1, True, 2.5, "s"]}, "e": {}, "l": []}},
    {"target": "m", "params": {"n": 1e300, "big": 2**60, "neg": -1}, "sticky": "key"},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("keys", KEYS)
def test_put_alias_has_the_keys_that_were_given(name, keys):
    """Whatever characters they have; every other alias and model stays."""
    edited = put_alias(FILE, name, keys)

    assert alias_keys(edited, name) == keys
    before, after = (tomli.loads(data.decode()) for data in (FILE, edited))
    before["aliases"].pop(name, None)
    after["aliases"].pop(name)
    assert before == after


def test_put_alias_leaves_null_out_and_refuses_what_toml_cannot_express():
    """Null in an array, and a value that is nested a thousand levels deep."""
    assert alias_keys(put_alias(FILE, "x", {"target": "m", "shadow": None}), "x") == {"target": "m"}
    deep: dict[str, object] = {}
    for _ in range(1000):
        deep = {"a": deep}
    for value in ([None], deep):
        with pytest.raises(CannotEdit):
            put_alias(FILE, "x", {"target": "m", "params": {"k": value}})
    assert alias_keys(FILE, "nobody") is None
