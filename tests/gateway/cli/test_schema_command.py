"""`cortex schema`."""

import json

import pytest
from click.testing import CliRunner

from catalogue.load import models_schema
from gateway.cli.main import main
from gateway.config.load import settings_schema
from neuron.agent.config.load import neuron_schema


@pytest.mark.parametrize(
    ("file", "schema", "keys"),
    [
        ("config", settings_schema(), {"gateway", "deadlines", "neurons", "models_config"}),
        ("models", models_schema(), {"models", "aliases"}),
        ("neuron", neuron_schema(), {"api", "state", "engines", "models"}),
    ],
)
def test_schema_of_a_file_is_printed_as_json(file, schema, keys):
    """It can be redirected into a file for an editor."""
    result = CliRunner().invoke(main, ["schema", file])

    assert result.exit_code == 0
    assert json.loads(result.stdout) == schema
    assert keys <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


def test_schema_of_another_file_is_a_usage_error():
    """The message lists the files."""
    result = CliRunner().invoke(main, ["schema", "engines"])

    assert result.exit_code == 1
    assert "'config', 'models'" in result.stderr
