"""Reading a file into a dataclass: the faults of a file that is neither `models.toml` nor `cortex.toml`."""

from dataclasses import dataclass
from typing import Annotated, Literal

import pytest
from pydantic import BeforeValidator, TypeAdapter

from catalogue.toml.faults import FaultyFile
from catalogue.toml.parse import parse_toml
from catalogue.toml.positions import scan
from catalogue.toml.schema import json_schema, properties_at
from catalogue.toml.types import (
    FILE,
    CheckedTable,
    Count,
    Flag,
    Name,
    Number,
    Percent,
    String,
    checked,
    refuse_duplicates,
)
from catalogue.toml.validate import Document, Override, read


def refuse_more_threads_than_cores(engine: CheckedTable) -> None:
    if engine.is_good("threads") and engine.raw.get("threads", 0) > engine.raw.get("cores", 0):
        engine.refuse(("threads",), "is more than `cores`", "lower it, or raise `cores` in line {line}", see=("cores",))


@dataclass(frozen=True, slots=True)
class Engine:
    """An engine."""

    name: Name
    """Its name."""

    cores: Count = 1
    threads: Count = 1
    kind: Literal["llama", "vllm"] = "llama"


EngineTable = Annotated[Engine, checked(refuse_more_threads_than_cores)]


def engine_from_string(value):
    return {"name": value} if isinstance(value, str) else value


@dataclass(frozen=True, slots=True)
class Storage:
    """Where models are."""

    used_percent: Percent = 90
    quota_gb: Number | None = None


@dataclass(frozen=True, slots=True)
class File:
    """A whole file."""

    __pydantic_config__ = FILE

    token: String | None = None
    debug: Flag = False
    storage: Storage = Storage()
    engines: Annotated[tuple[EngineTable, ...], checked(refuse_duplicates("name"))] = ()
    spare: Annotated[Engine, BeforeValidator(engine_from_string, json_schema_input_type=Name | Engine)] | None = None


ADAPTER = TypeAdapter(File)


def document(text, overrides=None):
    text, data = parse_toml(text.encode(), path="x.toml")
    overrides = {key: Override(variable, value) for key, (variable, value) in (overrides or {}).items()}
    return Document("x.toml", data, scan(text), overrides)


def faults(text, overrides=None):
    with pytest.raises(FaultyFile) as caught:
        read(ADAPTER, document(text, overrides), {})
    return [str(fault) for fault in caught.value.faults]


def test_good_file_becomes_frozen_dataclasses():
    """Tables become their classes, arrays tuples, and keys that are left out have their defaults."""
    file = read(ADAPTER, document('storage.quota_gb = 3\nspare = "b"\n[[engines]]\nname = "a"\ncores = 2'), {})

    assert file == File(storage=Storage(quota_gb=3.0), engines=(Engine("a", cores=2),), spare=Engine("b"))
    with pytest.raises(AttributeError):
        file.debug = True


def test_empty_file_is_all_defaults():
    """Nothing in this file is required."""
    assert read(ADAPTER, document(""), {}) == File()


def test_all_faults_have_their_lines_and_hints():
    """Also those of checks across keys, in the order of the file."""
    assert faults(
        """\
token = 5
debug = "true"
[storage]
used_percent = 101
quota = 3
[[engines]]
name = "a"
cores = 2
threads = 4
kind = "lama"
[[engines]]
name = "a"
cors = 3
[[engines]]
threads = 0
"""
    ) == [
        "x.toml:1: token: must be a string, not an integer; write it in quotes",
        "x.toml:2: debug: must be true or false, not a string; write it without quotes",
        "x.toml:4: storage.used_percent: must be at most 100",
        "x.toml:5: storage.quota: unknown key `quota`; did you mean `quota_gb`?",
        "x.toml:9: engines[0].threads: is more than `cores`; lower it, or raise `cores` in line 8",
        'x.toml:10: engines[0].kind: must be one of "llama", "vllm"; did you mean `llama`?',
        'x.toml:12: engines[1].name: "a" is already used by an earlier entry; the earlier entry is in line 7',
        "x.toml:13: engines[1].cors: unknown key `cors`; did you mean `cores`?",
        "x.toml:14: engines[2].name: is required and missing",
        "x.toml:15: engines[2].threads: must be at least 1",
    ]


def test_check_does_not_run_on_what_is_no_table():
    """The wrong type is the only fault."""
    assert faults("engines = [3]") == [
        "x.toml:1: engines[0]: must be a table, not an integer; write [[engines]] on a line of its own"
    ]


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("engines = 1", "engines: must be an array of tables, not an integer; write [[engines]], in double brackets"),
        ("spare = ''", "spare: must not be empty"),
        ("spare = {name = ''}", "spare.name: must not be empty"),
        ("spare = {nam = 'a', name = 'a'}", "spare.nam: unknown key `nam`; did you mean `name`?"),
        ("storage = 1", "storage: must be a table, not an integer; write [storage] on a line of its own"),
        ("used_percent = 1", "used_percent: unknown key `used_percent`; `used_percent` belongs in [storage]"),
        ("[storage]\ntoken = 'x'", None),
        ("[storage]\nengines = []", None),
        ("zzz = 1", "zzz: unknown key `zzz`; known keys: token, debug, storage, engines, spare"),
    ],
)
def test_fault_uses_the_keys_of_the_file(text, fault):
    """Not the shape that our types give to a value before they check it."""
    homes = {
        "[storage]\ntoken = 'x'": "x.toml:2: storage.token: unknown key `token`; "
        "`token` belongs at the top of the file, before the first [header]",
        "[storage]\nengines = []": "x.toml:2: storage.engines: unknown key `engines`; "
        "`engines` belongs at the top level, as [[engines]]",
    }
    assert faults(text) == [homes[text] if fault is None else f"x.toml:1: {fault}"]


def test_fault_of_a_variable_names_the_variable():
    """It has no line, and no advice about quotes."""
    text = "debug = 'x'\n[storage]\nused_percent = 1000"
    overrides = {("debug",): ("X_DEBUG", "x"), ("storage",): ("X_STORAGE", "{used_percent = 1000}")}

    assert faults(text, overrides) == [
        "X_DEBUG: debug: must be true or false, not a string",
        "X_STORAGE: storage.used_percent: must be at most 100",
    ]


def test_text_of_a_variable_may_look_like_a_number():
    """Where a string is wanted; anywhere else a number is a number."""
    override = {("token",): ("X_TOKEN", "0123")}

    assert read(ADAPTER, document("token = 123", override), {}).token == "0123"
    assert read(ADAPTER, document("storage.quota_gb = 123", {}), {}).storage.quota_gb == 123


def test_exception_has_no_value_of_the_file_in_its_context():
    """A traceback must not show a secret."""
    with pytest.raises(FaultyFile) as caught:
        read(ADAPTER, document("token = ['hunter2']"), {})

    assert caught.value.__context__ is None
    assert "hunter2" not in str(caught.value)


def test_schema_describes_the_file_and_not_our_types():
    """No null, no titles of keys; an entry that may be a string has both forms."""
    schema = json_schema(ADAPTER)

    assert schema["$defs"]["Engine"]["properties"]["name"] == {"description": "Its name.", "type": "string"}
    assert schema["properties"]["token"] == {"type": "string"}
    assert schema["properties"]["spare"] == {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Engine"}]}
    assert schema["properties"]["engines"]["default"] == []
    assert "default" not in schema["properties"]["storage"]
    assert list(properties_at(schema, ("engines", 3))) == ["name", "cores", "threads", "kind"]
    assert properties_at(schema, ("nothing", "there")) == {}
