"""gateway.aliases.files.toml_edit: one alias changes, every other byte stays."""

import difflib

import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from gateway.aliases.files import toml_edit
from gateway.aliases.files.toml_edit import CannotEdit, remove_alias, restore_alias, set_alias

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
    """The lines that went, and those that came."""
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
    """In its place, in the shape it has if that can say it, its comment kept."""
    edited = set_alias(FILE, name, targets, swap=swap)

    assert [line[1:] for line in changed(FILE, edited) if line[0] == "+"] == expected
    assert len(changed(FILE, edited)) == 2


def test_default_swap_is_written_only_where_another_was():
    """Who never said how an alias moves need not read it afterwards."""
    edited = set_alias(FILE, "helexa/large", {"B": 1}, swap="warm")
    assert "swap" not in aliases(edited)["helexa/large"]

    cold = set_alias(FILE, "helexa/large", {"B": 1}, swap="cold")
    assert aliases(set_alias(cold, "helexa/large", {"B": 1}, swap="warm"))["helexa/large"]["swap"] == "warm"


def test_edit_that_would_touch_another_alias_is_refused(monkeypatch):
    """TOML Kit has had faults of the kind: what it wrote is read again before anybody gets it."""
    dumps = toml_edit.tomlkit.dumps

    def faulty(document):
        text = dumps(document)
        return text.replace("'Qwen/Qwen3-8B'", "'lost'") if "NEW" in text else text

    monkeypatch.setattr(toml_edit.tomlkit, "dumps", faulty)
    with pytest.raises(CannotEdit, match="cannot be changed without touching more"):
        set_alias(FILE, "helexa/small", {"NEW": 1})


def test_swap_of_a_table_is_added_below_its_other_keys():
    """The table is the operator's; it gets one line more."""
    edited = set_alias(FILE, "helexa/large", {"B": 1}, swap="cold")

    assert changed(FILE, edited) == [
        '-target = "Qwen/Qwen3.6-27B"  # see the wiki',
        '+target = "B"  # see the wiki',
        '+swap = "cold"',
    ]


def test_new_alias_goes_below_the_last_of_one_line():
    """Not below the comment that speaks of the next table."""
    edited = set_alias(FILE, "new/one", {"B": 1})

    assert changed(FILE, edited) == ['+"new/one" = "B"']
    assert edited.decode().splitlines()[5] == '"new/one" = "B"'


def test_new_alias_is_indented_as_its_neighbours_are():
    """And ends its line as they do."""
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
def test_new_alias_finds_a_place_in_every_shape_of_file(before, after):
    """However the file says its aliases, or does not yet."""
    assert set_alias(before, "n", {"N": 1}) == after


def test_name_that_needs_quotes_gets_them():
    """A name is data: no name can say more than a name."""
    name = 'a"b]\n[models'

    assert aliases(set_alias(FILE, name, {"B": 1}))[name] == "B"


# Back.


@pytest.mark.parametrize("name", ["helexa/small", "helexa/balanced", "inline", "helexa/large", "new/one"])
@pytest.mark.parametrize("targets", [{"B": 1}, {"A": 95, "B": 5}])
def test_restore_after_set_is_the_same_file(name, targets):
    """Byte by byte, whatever shape the alias had and was given."""
    assert restore_alias(set_alias(FILE, name, targets), name, FILE) == FILE


def test_steps_of_a_rollout_end_in_a_plain_string():
    """A table that says no more than a string is one again."""
    step = set_alias(set_alias(FILE, "helexa/small", {"A": 95, "B": 5}), "helexa/small", {"A": 50, "B": 50})

    assert changed(FILE, set_alias(step, "helexa/small", {"B": 100})) == [
        '-"helexa/small" = "Qwen/Qwen3-1.7B"   # cheap',
        '+"helexa/small" = "B"   # cheap',
    ]


@pytest.mark.parametrize(("name", "gone"), [("helexa/small", 1), ("inline", 1), ("helexa/large", 5)])
def test_remove_takes_the_alias_and_nothing_else(name, gone):
    """Its own lines; the comments about it stay for whoever wrote them."""
    edited = remove_alias(FILE, name)

    assert aliases(edited) == {key: value for key, value in aliases(FILE).items() if key != name}
    assert len(changed(FILE, edited)) == gone
    assert b"What follows is about" in edited


@pytest.mark.parametrize("name", ["helexa/small", "inline", "helexa/large"])
def test_restore_brings_back_what_was_removed(name):
    """In meaning: its place may be another."""
    assert aliases(restore_alias(remove_alias(FILE, name), name, FILE)) == aliases(FILE)


def test_remove_of_what_is_not_there_says_so():
    """Nothing to write."""
    with pytest.raises(KeyError):
        remove_alias(FILE, "nobody")
    with pytest.raises(KeyError):
        remove_alias(b"", "nobody")


def test_restore_of_what_was_not_there_removes_it():
    """The way back from a `set` of a new name."""
    assert restore_alias(set_alias(FILE, "new", {"B": 1}), "new", FILE) == FILE
    assert restore_alias(FILE, "nobody", FILE) == FILE


def test_aliases_that_are_no_table_are_not_edited():
    """What would have to be thrown away is not."""
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
    """Any layout a person could have given a catalogue, and the names of its aliases."""
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


def targets_of(said):
    """Weight by model, however it is said."""
    if isinstance(said, str):
        return {said: None}
    return {said["target"]: None} if "target" in said else {each["model"]: each["weight"] for each in said["targets"]}


@given(files(), st.data())
def test_edit_of_any_layout_touches_only_its_alias(file, data):
    """Every line that does not speak of the alias is still there, in order; and the way back leads home."""
    text, names = file
    name = data.draw(st.sampled_from(names))
    targets = data.draw(st.sampled_from([{"new": 1}, {"old": 95, "new": 5}]))
    before = text.encode()

    after = set_alias(before, name, targets)

    assert targets_of(aliases(after)[name]) == ({"new": None} if len(targets) == 1 else targets)
    assert {key: value for key, value in aliases(after).items() if key != name} == {
        key: value for key, value in aliases(before).items() if key != name
    }
    gone = [line for line in changed(before, after) if line[0] == "-"]
    came = [line for line in changed(before, after) if line[0] == "+"]
    assert len(gone) == 1 == len(came)
    assert restore_alias(after, name, before) == before
