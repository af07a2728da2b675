"""The secret key of a gateway that starts."""

import pytest
from structlog.testing import capture_logs

from gateway.config.settings import Settings
from gateway.files import secret_key
from gateway.server.gateway import Gateway

pytestmark = pytest.mark.usefixtures("fresh_loggers")


def key_of_new_gateway(directory):
    return Gateway(Settings(models_config=directory / "models.toml")).inference.context.secret_key


def test_gateways_with_one_state_directory_share_a_key(tmp_path):
    """So that each decodes what another has given to a client."""
    (tmp_path / "models.toml").write_text("models = []\n")

    assert key_of_new_gateway(tmp_path) == key_of_new_gateway(tmp_path) == secret_key.read_or_create(tmp_path)


def test_gateway_without_a_usable_key_file_starts_with_a_key_of_its_own(tmp_path):
    """With a warning: what clients send back is ignored after a restart."""
    (tmp_path / "models.toml").write_text("models = []\n")
    (tmp_path / "secret.key").write_text("no key")
    with capture_logs() as logs:
        keys = {key_of_new_gateway(tmp_path) for _ in range(2)}

    assert [len(key) for key in keys] == [secret_key.KEY_BYTES] * 2
    [first, _] = [entry for entry in logs if entry["event"] == "secret_key_unusable"]
    assert (first["log_level"], first["path"]) == ("warning", str(tmp_path / "secret.key"))
    assert (tmp_path / "secret.key").read_text() == "no key"
