"""What a `models.toml` may say, and how its faults are told."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue.load import parse, says_nothing
from catalogue.models import Alias, Cost, FaultyFile, Limit, ModelProfile

MODEL = '[[models]]\nid = "m"\nharness = "h"\n'  # lines 1 to 3; what is under test begins on line 4


def read(text, **changes):
    data = text.encode() if isinstance(text, str) else text
    return parse(data, **{"path": "models.toml", "generation": 7, "loaded_at": 12.5, **changes})


def faults(text):
    with pytest.raises(FaultyFile) as caught:
        read(text)
    return [(fault.line, fault.key, fault.message, fault.hint) for fault in caught.value.faults]


def test_every_key_is_read():
    """All that can be said of a model arrives in its profile, in the types the rest of cortex uses."""
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
    """A request keeps what it resolved with; nobody can reach into it."""
    catalogue = read(MODEL)

    with pytest.raises(TypeError):
        catalogue.models["other"] = catalogue.models["m"]
    with pytest.raises(AttributeError):
        catalogue.generation = 8


def test_digest_is_of_the_bytes():
    """Operators compare it with `sha256sum models.toml`."""
    assert read(MODEL).digest == hashlib.sha256(MODEL.encode()).hexdigest()


def test_byte_order_mark_is_no_fault():
    """Some editors put one in front."""
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
        ("cost.input = nan", 4, "models[0].cost.input", "must be a finite number of a sensible size", None),
        ("idle_ttl_seconds = inf", 4, "models[0].idle_ttl_seconds", "must be a finite number of a sensible size", None),
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
            '[[models]]\nharness = "h"\nid = "m"', 6, "models[1].id", '"m" is taken by an earlier entry',
            "that is in line 2",
        ),
        ('[aliases]\na = "b"\nb = "m"', 5, "aliases.a", "points at another alias", 'name the model itself: "m"'),
        ('[aliases]\na = "a"', 5, "aliases.a", "points at itself", "name the model itself"),
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
            "put quotes around a name that has anything but letters, digits, - and _ in it",
        ),
        (
            '[aliases]\nx = "m"\nx = "n"', 6, None, "not TOML: Cannot overwrite a value",
            "the same key stands here twice; keep one",
        ),
        (
            'quant = "half', 4, None, "not TOML: Illegal character '\\n'",
            "a string ends on the line it begins on: close its quotes",
        ),
        (
            "[aliases]\n[models]", 5, None, "not TOML: Cannot declare ('models',) twice",
            "there is such a table already; only a list has several, each of them in [[two brackets]]",
        ),
        ("quant = q8", 4, None, "not TOML: Invalid value", "text takes quotes; true and false are written small"),
        ("quant: q8", 4, None, "not TOML: Expected '=' after a key in a key/value pair", "write `key = value`"),
        ("quant\n[aliases]", 4, None, "not TOML: Expected '=' after a key in a key/value pair", "write `key = value`"),
        (
            '[aliases]\nqwen3:8b = "m"', 5, None, "not TOML: Expected '=' after a key in a key/value pair",
            "put quotes around a name that has anything but letters, digits, - and _ in it",
        ),
        (
            'quant = "q8",', 4, None, "not TOML: Expected newline or end of document after a statement",
            "nothing but a # comment may follow a value on its line",
        ),
        (
            'source = "C:\\models"', 4, None, "not TOML: Unescaped '\\' in a string",
            "write it in 'single quotes', where a \\ is nothing special",
        ),
        ("quant = \u201cq8\u201d", 4, None, "not TOML: Invalid value", "quotes are straight: \" or '"),
    ],
)  # fmt: skip
def test_fault_names_line_key_and_what_to_do(text, line, key, message, hint):
    """One mistake, one fault, on the line an editor would jump to."""
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
    """A slip in the brackets is told as such and not as a hundred unknown keys."""
    [found] = faults(text)

    assert found[2] == message
    if hint is not None:
        assert found[3] == hint


def test_every_fault_is_told_at_once_in_file_order():
    """Ten mistakes do not take ten attempts."""
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


def test_invalid_utf8_is_told_with_its_line():
    """A file in Latin-1 is not guessed at."""
    assert faults(b"a = 1\n# caf\xe9\n") == [(2, None, "not UTF-8", "save the file as UTF-8")]


def test_tomlis_own_limits_are_faults_too():
    """Depth, digits, parts of a key: a refusal like any other."""
    for text in ("a = " + "[" * 5000, "a = " + "1" * 5000, ".".join(["a"] * 5000) + " = 1", "a = " + "{b=" * 5000):
        [found] = faults(text)
        assert found[2].startswith("not ")
        assert "sys." not in found[2], "an operator edits a file, not Python"


def test_alias_that_shadows_a_model_is_a_warning():
    """Legal, and rarely meant."""
    catalogue = read(MODEL + '[aliases]\nm = "other"\n')

    [warning] = catalogue.warnings
    assert (warning.line, warning.key, warning.message) == (5, "aliases.m", "shadows the model of that name")
    assert catalogue.aliases["m"].target == "other"


def test_file_that_says_nothing_is_a_warning_and_one_that_says_none_is_not():
    """`models = []` is how an operator says that an empty catalogue is meant."""
    assert [warning.message for warning in read("# later\n").warnings] == ["defines no models and no aliases"]
    assert read("models = []").warnings == ()


@pytest.mark.parametrize("data", [b"", b"\n \n", b"# x = 1\n  # y\r\n", b"\xef\xbb\xbf", b"\xef\xbb\xbf# x"])
def test_says_nothing_of_blank_files(data):
    """Empty, or all comments."""
    assert says_nothing(data)


@pytest.mark.parametrize("data", [b"models = []", b"# x\n[aliases]", b"\x00"])
def test_says_something(data):
    """A header is enough."""
    assert not says_nothing(data)


def test_fault_reads_as_one_line_an_editor_understands():
    """`file:line: key: what; hint`."""
    with pytest.raises(FaultyFile) as caught:
        read(MODEL + "min_device = 2")

    expected = "models.toml:4: models[0].min_device: unknown key `min_device`; did you mean `min_devices`?"
    assert str(caught.value) == expected


# Fuzz: nothing but FaultyFile, whatever the bytes.

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
    assert reasons, "a refusal needs a reason"


@given(st.binary())
def test_no_bytes_raise_anything_else(data):
    """Not even by accident."""
    refuses_or_reads(data)


@given(st.lists(WORDS, max_size=30).map("".join))
def test_no_jumble_of_toml_raises_anything_else(text):
    """Nearly right is where parsers break."""
    refuses_or_reads(text)


@given(st.lists(LINES, max_size=10).map("\n".join))
def test_no_valid_toml_raises_anything_else(text):
    """Right syntax, any values in any place."""
    refuses_or_reads(text)
