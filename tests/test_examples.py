"""The example files: good as they stand, complete, and right about every default they mention."""

import dataclasses
import re
from pathlib import Path

import pytest
import tomli

from catalogue.aliases import alias_fields
from catalogue.load import COST_FIELDS, LIMIT_FIELDS, MODEL_FIELDS, parse
from catalogue.models import Alias, Hedge
from catalogue.toml.fields import Place, Report
from gateway.config import keys, load, settings

ROOT = Path(__file__).parent.parent
CORTEX_EXAMPLE = ROOT / "cortex.example.toml"
MODELS_EXAMPLE = ROOT / "models.example.toml"


def uncommented(text):
    """The file as it would be with every shown default said aloud."""
    return re.sub(r"^# (\w+ = .*)$", r"\1", text, flags=re.MULTILINE)


def test_cortex_example_is_accepted():
    """Copy it, and it works."""
    loaded = load.load(CORTEX_EXAMPLE, {})

    assert loaded.warnings == ()
    assert [neuron.name for neuron in loaded.settings.neurons] == ["beast", "mule", "workstation"]
    assert loaded.settings.models_config == MODELS_EXAMPLE


def test_models_example_is_accepted():
    """And so does this one; the three tiers stand for what they should."""
    catalogue = parse(MODELS_EXAMPLE.read_bytes(), path="models.example.toml", generation=1, loaded_at=0.0)

    assert catalogue.warnings == ()
    tiers = {name: alias.target for name, alias in catalogue.aliases.items()}
    assert tiers == {
        "helexa/small": "Qwen/Qwen3-1.7B",
        "helexa/balanced": "Qwen/Qwen3-8B",
        "helexa/large": "Qwen/Qwen3.6-27B",
    }
    assert set().union(*(alias.active for alias in catalogue.aliases.values())) <= catalogue.models.keys()


def test_cortex_example_shows_every_key():
    """Whatever can be set is in the manual."""
    shown = tomli.loads(uncommented(CORTEX_EXAMPLE.read_text()))

    assert shown.keys() == keys.SETTINGS_FIELDS.keys()
    for section, (_, rows) in keys.SECTIONS.items():
        assert shown[section].keys() == rows.keys(), section
    assert set().union(*shown["neurons"]) == keys.NEURON_FIELDS.keys()


def test_cortex_example_is_right_about_defaults():
    """What stands behind a # is what holds without it."""
    said = tomli.loads(uncommented(CORTEX_EXAMPLE.read_text()))
    given = tomli.loads(CORTEX_EXAMPLE.read_text())
    for section, (kind, _) in keys.SECTIONS.items():
        defaults = dataclasses.asdict(kind())
        defaults |= {name: str(value) for name, value in vars_of(kind()) if isinstance(value, settings.Listen)}
        for key in said[section].keys() - given[section].keys() - {"token", "spool_dir"}:  # neither has one
            value = said[section][key]
            assert (tuple(value) if isinstance(value, list) else value) == defaults[key], f"{section}.{key}"


def vars_of(record):
    return [(field.name, getattr(record, field.name)) for field in dataclasses.fields(record)]


def test_cortex_example_is_right_about_every_key_of_an_engine():
    """Every # of the last table taken away, it still loads, and says what the defaults are where there are some."""
    shown = tomli.loads(uncommented(CORTEX_EXAMPLE.read_text()))["neurons"][-1]
    report = Report("cortex.example.toml")

    assert keys.SETTINGS_FIELDS["neurons"].check([shown | {"api_key": "k"}], Place(report))[0].engine == "ollama"
    assert report.faults == []
    assert shown["base_path"] == settings.NeuronSettings("x", "http://x").base_path


@pytest.mark.parametrize("rows", [MODEL_FIELDS, LIMIT_FIELDS, COST_FIELDS])
def test_models_example_shows_every_key(rows):
    """Here too."""
    text = MODELS_EXAMPLE.read_text()

    assert [key for key in rows if not re.search(rf"^(# |\[models\.|limit\.)?{key}\b", text, re.MULTILINE)] == []


def test_models_example_shows_every_key_of_an_alias_and_is_right_about_defaults():
    """Every # of its table taken away, it says all there is to say, and what holds where it says nothing."""
    _, header, table = MODELS_EXAMPLE.read_text().partition('[aliases."helexa/balanced"]')
    text = header + uncommented(table)
    said = tomli.loads(text)["aliases"]["helexa/balanced"]
    alias = parse(text.encode(), path="x", generation=1, loaded_at=0.0).aliases["helexa/balanced"]
    plain = Alias.plain("x", "m")

    assert said.keys() == alias_fields(lambda value, _: value).keys() - {"target"}
    for key in ("fallback", "swap", "echo", "force"):
        assert getattr(alias, key) == getattr(plain, key), key
    assert alias.warm_deadline_seconds == settings.DeadlineSettings().load_seconds
    assert alias.hedge == Hedge()
