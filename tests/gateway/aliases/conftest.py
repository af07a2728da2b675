"""A catalogue file and the store that has read it."""

import pytest
from fakes.catalogue_files import POLL_NEVER_S, SMALL

from gateway.aliases.catalogue_store import CatalogueStore


@pytest.fixture
def path(tmp_path):
    """A models.toml whose alias stands for `small-model`, in its own directory."""
    file = tmp_path / "conf" / "models.toml"
    file.parent.mkdir()
    file.write_text(SMALL)
    return file


@pytest.fixture
def store(path):
    store = CatalogueStore(path, poll_s=POLL_NEVER_S)
    store.load_initial()
    return store
