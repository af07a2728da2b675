"""The gateway's secret key."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.files import secret_key, state_directory


def test_key_is_created_once_and_only_for_its_owner(tmp_path):
    """Mode 0600; a second gateway reads the same key; nothing else is left in the directory."""
    key = secret_key.read_or_create(tmp_path)

    assert len(key) == secret_key.KEY_BYTES
    assert secret_key.read_or_create(tmp_path) == key
    assert [path.name for path in tmp_path.iterdir()] == ["secret.key"]
    assert stat.S_IMODE((tmp_path / "secret.key").stat().st_mode) == 0o600


def test_gateways_that_start_together_have_one_key(tmp_path):
    """The first to create the file wins."""
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(secret_key.read_or_create, [tmp_path] * 8))) == 1


@pytest.mark.parametrize("content", ["", "zz", "00" * 31, "\xff" * 64])
def test_file_that_is_no_key_is_not_replaced(tmp_path, content):
    """It may be another gateway's, half restored from a backup."""
    (tmp_path / "secret.key").write_text(content, "latin-1")

    with pytest.raises(secret_key.FaultyKey, match="64 hexadecimal digits"):
        secret_key.read_or_create(tmp_path)
    assert (tmp_path / "secret.key").read_text("latin-1") == content


def test_directory_that_does_not_exist_is_an_error(tmp_path):
    """The gateway then uses a key of its process."""
    with pytest.raises(OSError, match="nowhere"):
        secret_key.read_or_create(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("models_path", "directory"),
    [
        ("/srv/cortex/models.toml", "/srv/cortex"),
        ("/etc/cortex/models.toml", "/var/lib/cortex"),
        ("/etcetera/m", "/etcetera"),
    ],
)
def test_state_is_not_kept_under_etc(monkeypatch, models_path, directory):
    """A service's user can usually not write there."""
    monkeypatch.setattr(state_directory, "SYSTEM_DIRECTORY", Path("/var/lib/cortex"))
    assert state_directory.default_directory(Path(models_path)) == Path(directory)
