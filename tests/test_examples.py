"""The example files: accepted as they are, complete, and right about every default they show."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import tomli

from catalogue.aliases import AliasTable
from catalogue.load import models_schema, parse
from catalogue.models import Alias, Cost, Hedge, Limit, ModelProfile
from gateway.config import load, settings
from gateway.config.neurons_file import neurons_schema
from neuron.agent.config.load import neuron_schema

ROOT = Path(__file__).parent.parent
CORTEX_EXAMPLE = ROOT / "cortex.example.toml"
MODELS_EXAMPLE = ROOT / "models.example.toml"
NEURON_EXAMPLE = ROOT / "neuron.example.toml"


def uncommented(text):
    """The file with every commented key in force."""
    return re.sub(r"^# (\w+ = .*)$", r"\1", text, flags=re.MULTILINE)


def test_cortex_example_is_accepted():
    """An operator can start with a copy of it."""
    loaded = load.load(CORTEX_EXAMPLE, {})

    assert loaded.warnings == ()
    assert [neuron.name for neuron in loaded.settings.neurons] == ["beast", "mule", "workstation"]
    assert loaded.settings.models_config == MODELS_EXAMPLE


def test_models_example_is_accepted():
    """Its three tiers have the targets that the documentation names."""
    catalogue = parse(MODELS_EXAMPLE.read_bytes(), path="models.example.toml", generation=1, loaded_at=0.0)

    assert catalogue.warnings == ()
    tiers = {name: alias.target for name, alias in catalogue.aliases.items()}
    assert tiers == {
        "helexa/small": "Qwen/Qwen3-1.7B",
        "helexa/balanced": "Qwen/Qwen3-8B",
        "helexa/large": "Qwen/Qwen3.6-27B",
    }
    assert set().union(*(alias.active for alias in catalogue.aliases.values())) <= catalogue.models.keys()


SECTIONS = {
    section.name: section.default
    for section in dataclasses.fields(settings.Settings)
    if dataclasses.is_dataclass(section.default)
}


def keys_of(kind):
    return {field.name for field in dataclasses.fields(kind)}


def test_cortex_example_shows_every_key():
    """The example is the manual."""
    shown = tomli.loads(uncommented(CORTEX_EXAMPLE.read_text()))

    assert shown.keys() == keys_of(settings.Settings)
    for section, defaults in SECTIONS.items():
        assert shown[section].keys() == keys_of(defaults), section
    assert set().union(*shown["neurons"]) == keys_of(settings.NeuronSettings)


def test_cortex_example_is_right_about_defaults():
    """A commented key shows its default."""
    shown = tomli.loads(uncommented(CORTEX_EXAMPLE.read_text()))
    given = tomli.loads(CORTEX_EXAMPLE.read_text())
    for section, defaults in SECTIONS.items():
        for key in (
            shown[section].keys()
            - given.get(section, {}).keys()
            - {"token", "spool_dir", "dir", "mode", "limits", "cert", "key", "client_ca", "otlp_endpoint"}
        ):  # without a default
            value, default = shown[section][key], getattr(defaults, key)
            default = str(default) if isinstance(default, settings.Listen) else default
            assert (tuple(value) if isinstance(value, list) else value) == default, f"{section}.{key}"


def test_cortex_example_is_right_about_every_key_of_an_engine(tmp_path):
    """With every key of the last table uncommented the file is still accepted, and shows the defaults."""
    text = CORTEX_EXAMPLE.read_text()
    _, header, table = text.rpartition("[[neurons]]")
    config = tmp_path / "cortex.toml"
    config.write_text((header + uncommented(table)).replace('"…"', '"k"'))

    loaded = load.load(config, {})

    [shown] = loaded.settings.neurons
    assert loaded.warnings == ()
    assert (shown.engine, shown.api_key) == ("ollama", "k")
    assert shown.base_path == settings.NeuronSettings("x", "http://x").base_path


def test_example_listens_on_loopback_and_shows_how_to_open_it():
    """A copy of the example is reachable from its own machine only; the line that opens it is a comment."""
    lines = CORTEX_EXAMPLE.read_text().splitlines()
    open_lines = [line for line in lines if "0.0.0.0" in line]
    assert '#   listen = "0.0.0.0:31313"' in open_lines
    assert all(line.startswith("#") for line in open_lines)
    for listen in (load.load(CORTEX_EXAMPLE, {}).settings.gateway.listen, settings.GatewaySettings().metrics_listen):
        assert listen.host == "127.0.0.1"


@pytest.mark.parametrize("kind", [ModelProfile, Limit, Cost])
def test_models_example_shows_every_key(kind):
    """The example is the manual."""
    text = MODELS_EXAMPLE.read_text()

    assert [
        key for key in keys_of(kind) if not re.search(rf"^(# |\[models\.|limit\.)?{key}\b", text, re.MULTILINE)
    ] == []


def test_models_example_shows_every_key_of_an_alias_and_is_right_about_defaults():
    """With every key uncommented the table has all keys, and shows the defaults."""
    _, header, table = MODELS_EXAMPLE.read_text().partition('[aliases."helexa/balanced"]')
    text = header + uncommented(table)
    shown = tomli.loads(text)["aliases"]["helexa/balanced"]
    alias = parse(text.encode(), path="x", generation=1, loaded_at=0.0).aliases["helexa/balanced"]
    plain = Alias.plain("x", "m")

    assert shown.keys() == keys_of(AliasTable) - {"target"}
    for key in ("fallback", "swap", "echo", "force"):
        assert getattr(alias, key) == getattr(plain, key), key
    assert alias.warm_deadline_seconds == settings.DeadlineSettings().load_seconds
    assert alias.hedge == Hedge()


def test_wheel_has_examples_schemas_and_deployment_files():
    """Who installs a wheel finds them in share/cortex of the environment."""
    wheel = tomli.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    data = wheel["shared-data"]
    assert data == {source: f"share/cortex/{source}" for source in data}
    assert all((ROOT / source).exists() for source in data)
    assert data.keys() == {path.name for path in ROOT.glob("*.example.toml")} | {"schemas", "deploy"}


# The schemas that the examples name for editors.


SCHEMAS = {
    "config": load.settings_schema(),
    "models": models_schema(),
    "neurons": neurons_schema(),
    "neuron": neuron_schema(),
}


@pytest.mark.parametrize(
    ("example", "schema"), [(CORTEX_EXAMPLE, "config"), (MODELS_EXAMPLE, "models"), (NEURON_EXAMPLE, "neuron")]
)
def test_example_names_its_schema_and_the_schema_is_current(example, schema):
    """After a change: `cortex schema config > schemas/cortex.schema.json`, or `models`, or `neuron`."""
    directive, _, path = example.read_text().partition("\n")[0].partition(" ")

    assert directive == "#:schema"
    assert json.loads((ROOT / path).read_text()) == SCHEMAS[schema]


def test_schema_of_the_neurons_file_is_current():
    """After a change: `cortex schema neurons > schemas/neurons.schema.json`."""
    assert json.loads((ROOT / "schemas/neurons.schema.json").read_text()) == SCHEMAS["neurons"]


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_every_key_in_a_schema_has_a_description_a_default_and_a_unit(schema):
    """What an editor shows must be enough to set the key. A key without a default says so."""
    objects = {"the file": schema} | schema["$defs"]
    for title, table in objects.items():
        for key, found in table["properties"].items():
            text = found.get("description") or schema["$defs"][found["$ref"].removeprefix("#/$defs/")]["description"]
            where = f"{title}.{key}"
            has_default = "default" in found or "efault" in text or key in table.get("required", ())
            assert text.endswith("."), where
            assert has_default or "$ref" in found, where
            assert found.get("type") not in {"number", "integer"} or UNITS.search(text), where


UNITS = re.compile("(?i)seconds|Mi?B\\b|bytes|number of|tokens|USD|percentage|share|priority|level")
