"""Reading a `models.toml`: every key, and every fault."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue.load import parse
from catalogue.models import Alias, Cost, Limit, ModelProfile
from catalogue.toml.faults import FaultyFile
from catalogue.toml.parse import is_blank

MODEL = '[[models]]\nid = "m"\nharness = "h"\n'  # lines 1 to 3; the text under test begins on line 4


def read(text, **changes):
    data = text.encode() if isinstance(text, str) else text
    return parse(data, **{"path": "models.toml", "generation": 7, "loaded_at": 12.5, **changes})


def faults(text):
    with pytest.raises(FaultyFile) as caught:
        read(text)
    return [(fault.line, fault.key, fault.message, fault.hint) for fault in caught.value.faults]


def test_every_key_is_read():
    """Every key of a model arrives in its profile, in the type that the gateway uses."""
    catalogue = read(
        """
        aliases = { "helexa/small" = "Qwen/Qwen3-1.7B", other = "elsewhere" }
        [[models]]
        id = "Qwen/Qwen3-1.7B"
        harness = "candle"
        quant = "q8_0"
        vram_mb = 4200
        min_devices = 2
        min_device_vram_mb = 6000
        pinned_on = ["beast", "mule"]
        residency_priority = -5
        source = "hf"
        capabilities = ["chat"]
        max_concurrent = 8
        idle_ttl_seconds = 1.5
        limit.context = 40960
        cost = { input = 0, output = 0.25 }
        """
    )

    assert catalogue.models == {
        "Qwen/Qwen3-1.7B": ModelProfile(
            id="Qwen/Qwen3-1.7B",
            harness="candle",
            quant="q8_0",
            vram_mb=4200,
            min_devices=2,
            min_device_vram_mb=6000,
            pinned_on=("beast", "mule"),
            residency_priority=-5,
            source="hf",
            capabilities=("chat",),
            limit=Limit(context=40960),
            cost=Cost(input=0.0, output=0.25),
            max_concurrent=8,
            idle_ttl_seconds=1.5,
        )
    }
    assert catalogue.aliases["helexa/small"] == Alias.plain("helexa/small", "Qwen/Qwen3-1.7B")
    assert catalogue.aliases["other"].target == "elsewhere"
    assert (catalogue.generation, catalogue.loaded_at, catalogue.path) == (7, 12.5, "models.toml")
    assert catalogue.warnings == ()


def test_snapshot_cannot_be_changed():
    """A request keeps its snapshot, and no code can modify it."""
    catalogue = read(MODEL)

    with pytest.raises(TypeError):
        catalogue.models["other"] = catalogue.models["m"]
    with pytest.raises(AttributeError):
        catalogue.generation = 8


def test_digest_is_of_the_bytes():
    """It equals the output of `sha256sum models.toml`."""
    assert read(MODEL).digest == hashlib.sha256(MODEL.encode()).hexdigest()


def test_byte_order_mark_is_no_fault():
    """Some editors write one."""
    assert "m" in read(b"\xef\xbb\xbf" + MODEL.encode()).models


@pytest.mark.parametrize(
    ("text", "line", "key", "message", "hint"),
    [
        ("min_device = 2", 4, "models[0].min_device", "unknown key `min_device`", "did you mean `min_devices`?"),
        ("[alias]\na = 'm'", 4, "alias", "unknown key `alias`", "did you mean `aliases`?"),
        ("cost.inputs = 1", 4, "models[0].cost.inputs", "unknown key `inputs`", "did you mean `input`?"),
        ("min_devices = true", 4, "models[0].min_devices", "must be an integer, not a boolean", None),
        ("min_devices = 0", 4, "models[0].min_devices", "must be at least 1", None),
        ("min_devices = 2.0", 4, "models[0].min_devices", "must be an integer, not a float", None),
        ('vram_mb = "2"', 4, "models[0].vram_mb", "must be an integer, not a string", "write it without quotes"),
        ("vram_mb = 0x" + "f" * 99, 4, "models[0].vram_mb", "must be at most 9007199254740991", None),
        ("quant = 8", 4, "models[0].quant", "must be a string, not an integer", "write it in quotes"),
        ("cost.input = -1", 4, "models[0].cost.input", "must be at least 0", None),
        ("cost.input = nan", 4, "models[0].cost.input", "must be a finite number below 2^53", None),
        ("idle_ttl_seconds = inf", 4, "models[0].idle_ttl_seconds", "must be a finite number below 2^53", None),
        ("idle_ttl_seconds = 07:00:00", 4, "models[0].idle_ttl_seconds", "must be a number, not a date or time", None),
        (
            "limit = 5", 4, "models[0].limit", "must be a table, not an integer",
            "write [models.limit] on a line of its own",
        ),
        ('pinned_on = "beast"', 4, "models[0].pinned_on", "must be an array, not a string", None),
        ('pinned_on = [\n"a",\n"",\n]', 6, "models[0].pinned_on[1]", "must not be empty", None),
        ('quant = " q8"', 4, "models[0].quant", "must not begin or end with white space", None),
        ('quant = "a\\r\\nx: y"', 4, "models[0].quant", "must not contain control characters", None),
        ('[[models]]\nharness = "h"', 4, "models[1].id", "is required and missing", None),
        ('[[models]]\nharness = "h"\nid = ""', 6, "models[1].id", "must not be empty", None),
        (
            '[[models]]\nharness = "h"\nid = "m"', 6, "models[1].id", '"m" is already used by an earlier entry',
            "the earlier entry is in line 2",
        ),
        ('[aliases]\na = "b"\nb = "m"', 5, "aliases.a", "names an alias, not a model", 'name the model: "m"'),
        ('[aliases]\na = "a"', 5, "aliases.a", "names an alias, not a model", "name the model"),
        ('[aliases]\na = ""', 5, "aliases.a", "has an empty target", None),
        ('[aliases]\n"" = "m"', 5, 'aliases.""', "must not be empty", None),
        ("[aliases]\na = 1", 5, "aliases.a", "must be a string, not an integer", "write it in quotes"),
        (
            '[aliases]\ngpt-4.1 = "m"', 5, "aliases.gpt-4", "is a table that names neither a `target` nor `targets`",
            "put quotes around a name that has dots in it",
        ),
        (
            '[aliases]\n"helexa/x" = {model = "m"}', 5, 'aliases."helexa/x"',
            "is a table that names neither a `target` nor `targets`", "did you mean `target`?",
        ),
        (
            '[aliases]\nhelexa/x = "m"', 5, None, "not TOML: Expected '=' after a key in a key/value pair",
            "put quotes around a name that has characters other than letters, digits, - and _",
        ),
        (
            '[aliases]\nx = "m"\nx = "n"', 6, None, "not TOML: Cannot overwrite a value",
            "this key is already set; keep one of the two",
        ),
        (
            'quant = "half', 4, None, "not TOML: Illegal character '\\n'",
            "a string must end on the line where it begins: close its quotes",
        ),
        (
            "[aliases]\n[models]", 5, None, "not TOML: models is defined twice",
            "this table is already defined; only an array of tables, in [[double brackets]], can repeat",
        ),
        ("quant = q8", 4, None, "not TOML: Invalid value", "write text in quotes, and true and false in lower case"),
        ("quant: q8", 4, None, "not TOML: Expected '=' after a key in a key/value pair", "write `key = value`"),
        ("quant\n[aliases]", 4, None, "not TOML: Expected '=' after a key in a key/value pair", "write `key = value`"),
        (
            '[aliases]\nqwen3:8b = "m"', 5, None, "not TOML: Expected '=' after a key in a key/value pair",
            "put quotes around a name that has characters other than letters, digits, - and _",
        ),
        (
            'quant = "q8",', 4, None, "not TOML: Expected newline or end of document after a statement",
            "only a # comment may follow a value on its line",
        ),
        (
            'source = "C:\\models"', 4, None, "not TOML: Unescaped '\\' in a string",
            "write it in 'single quotes', where \\ has no special meaning",
        ),
        ("quant = \u201cq8\u201d", 4, None, "not TOML: Invalid value", "use straight quotes: \" or '"),
    ],
)  # fmt: skip
def test_fault_names_line_key_and_what_to_do(text, line, key, message, hint):
    """One mistake gives one fault, on the line of the mistake."""
    [found] = faults(MODEL + text + "\n")

    assert found[:3] == (line, key, message)
    if hint is not None:
        assert found[3] == hint


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("[models]\nid='x'", "must be an array of tables, not a table", "write [[models]], in double brackets"),
        ("models = [1]", "must be a table, not an integer", "write [[models]] on a line of its own"),
        ("aliases = []", "must be a table, not an array", "write [aliases] on a line of its own"),
    ],
)
def test_wrong_kind_of_whole_section_is_one_fault(text, message, hint):
    """Wrong brackets give one fault, not an unknown key for every entry."""
    [found] = faults(text)

    assert found[2] == message
    if hint is not None:
        assert found[3] == hint


def test_all_faults_are_reported_together_in_file_order():
    """An operator corrects ten mistakes in one go."""
    text = """\
[[models]]
idd = "a"
min_devices = "2"
[[models]]
id = "b"
harness = "h"
min_device = 1
[[models]]
id = "b"
harness = ""
[aliases]
x = ""
y = "x"
"""
    assert [(line, key) for line, key, _, _ in faults(text)] == [
        (1, "models[0].id"),
        (1, "models[0].harness"),
        (2, "models[0].idd"),
        (3, "models[0].min_devices"),
        (7, "models[1].min_device"),
        (9, "models[2].id"),
        (10, "models[2].harness"),
        (12, "aliases.x"),
        (13, "aliases.y"),
    ]


def test_invalid_utf8_is_reported_with_its_line():
    """The encoding is not guessed."""
    assert faults(b"a = 1\n# caf\xe9\n") == [(2, None, "not UTF-8", "save the file as UTF-8")]


def test_tomlis_own_limits_are_faults_too():
    """Depth, digits, and parts of a key."""
    for text in ("a = " + "[" * 5000, "a = " + "1" * 5000, ".".join(["a"] * 5000) + " = 1", "a = " + "{b=" * 5000):
        [found] = faults(text)
        assert found[2].startswith("not ")
        assert "sys." not in found[2], "an operator edits a file, not Python"


def test_alias_with_the_name_of_a_model_is_a_warning():
    """It is legal, but rarely intended."""
    catalogue = read(MODEL + '[aliases]\nm = "other"\n')

    [warning] = catalogue.warnings
    assert (warning.line, warning.key, warning.message) == (5, "aliases.m", "hides the model of the same name")
    assert catalogue.aliases["m"].target == "other"


def test_empty_file_is_a_warning_and_an_empty_array_is_not():
    """`models = []` states that an empty catalogue is intended."""
    assert [warning.message for warning in read("# later\n").warnings] == ["defines no models and no aliases"]
    assert read("models = []").warnings == ()


@pytest.mark.parametrize("data", [b"", b"\n \n", b"# x = 1\n  # y\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf# x"])
def test_file_with_comments_only_is_blank(data):
    """So is an empty file."""
    assert is_blank(data)


@pytest.mark.parametrize("data", [b"models = []", b"# x\n[aliases]", b"\x00"])
def test_file_with_a_header_is_not_blank(data):
    """Nor is one with bytes that are not TOML."""
    assert not is_blank(data)


def test_fault_is_one_line_that_editors_can_parse():
    """`file:line: key: message; hint`."""
    with pytest.raises(FaultyFile) as caught:
        read(MODEL + "min_device = 2")

    expected = "models.toml:4: models[0].min_device: unknown key `min_device`; did you mean `min_devices`?"
    assert str(caught.value) == expected


# Fuzz: FaultyFile is the only exception.

NAMES = ["models", "aliases", "id", "harness", "min_devices", "pinned_on", "limit", "cost", "context", "input", "x"]
NAMES += ["target", "targets", "model", "weight", "fallback", "params", "force", "shadow", "percent", "hedge", "after"]
SHAPES = (
    r"""[[models]] [aliases] [models.limit] = . , [ ] { } " ' """
    '"""'
    r""" # "a" "" 1 -1 1e999 nan true 1979-05-27 \ \u0000 é"""
)
WORDS = st.sampled_from([*NAMES, *SHAPES.split(), "\n", " ", "\r", "\x00", "0x" + "f" * 5000])
JSONISH = st.recursive(
    st.sampled_from(['"a"', '""', '"\\u0000"', "1", "-1", "1e999", "-inf", "true", "07:00:00", "0x" + "f" * 5000]),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda values: f"[{', '.join(values)}]")
        | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).map(
            lambda table: "{" + ", ".join(f"{key} = {value}" for key, value in table.items()) + "}"
        )
    ),
    max_leaves=8,
)
LINES = st.sampled_from(
    ["[[models]]", "[aliases]", "[models.limit]", "[models.cost]", "[models]", "[aliases.x]"]
) | st.tuples(st.sampled_from([*NAMES, '"a"', '""', '"helexa/x"']), JSONISH).map(" = ".join)


def refuses_or_reads(data):
    try:
        read(data)
    except FaultyFile as error:
        reasons = error.faults
    else:
        return
    assert reasons, "a refusal without a fault"


@given(st.binary())
def test_no_bytes_raise_anything_else(data):
    """Random bytes."""
    refuses_or_reads(data)


@given(st.lists(WORDS, max_size=30).map("".join))
def test_no_jumble_of_toml_raises_anything_else(text):
    """Text that is nearly TOML."""
    refuses_or_reads(text)


@given(st.lists(LINES, max_size=10).map("\n".join))
def test_no_valid_toml_raises_anything_else(text):
    """Correct syntax with any value in any place."""
    refuses_or_reads(text)
