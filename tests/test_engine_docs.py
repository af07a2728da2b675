"""docs/engines.md: its tables are accepted and its claims are true."""

import re
from pathlib import Path
from typing import get_args

from gateway.config import load, settings
from gateway.config.engine_traits import ENGINES_WITH_USAGE, EngineName
from gateway.fleet.control.engine_client import EngineClient

ENGINES = get_args(EngineName)
PAGE = Path(__file__).parent.parent / "docs" / "engines.md"
SNIPPETS = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_every_table_is_accepted_and_together_they_are_a_config(tmp_path):
    """Without a fault or a warning."""
    config = tmp_path / "cortex.toml"
    config.write_text("\n".join(SNIPPETS))

    loaded = load.load(config, {})

    assert loaded.warnings == ()
    assert len(loaded.settings.neurons) == len(SNIPPETS)
    assert {neuron.kind for neuron in loaded.settings.neurons} == {"openai"}


def test_every_engine_that_can_be_named_has_a_table_and_a_row(tmp_path):
    """Every value of `engine` is explained."""
    config = tmp_path / "cortex.toml"
    config.write_text("\n".join(SNIPPETS))
    shown = {neuron.engine for neuron in load.load(config, {}).settings.neurons}

    assert shown - {None} == set(ENGINES)
    assert all(f"| `{engine}`" in PAGE.read_text() for engine in ENGINES)


def test_engines_listed_with_usage_are_those_of_ask_usage():
    """The last column is the default of `ask_usage`."""
    rows = re.findall(r"^\| `(\w+)`[^|]*(?:\|[^|]*){3}\| (\w+)[^|]*\|$", PAGE.read_text(), re.MULTILINE)

    assert {engine for engine, _ in rows} == {*ENGINES, "engine"}  # the heading
    assert {engine for engine, usage_engines in rows if usage_engines == "yes"} == ENGINES_WITH_USAGE


async def test_engines_listed_with_an_api_for_loading_are_those_with_one():
    """The table agrees with the client."""
    rows = dict(re.findall(r"^\| `(\w+)`[^|]*\|[^|]*\| ([^|]*) \|", PAGE.read_text(), re.MULTILINE))
    can = {engine for engine, loading in rows.items() if loading.startswith("`POST")}

    for engine in ENGINES:
        async with EngineClient(settings.NeuronSettings("x", "http://x", "openai", engine=engine)) as client:
            assert (engine in can) == client.can_load
