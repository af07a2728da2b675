"""gateway.aliases.files.versions: the files that were in force, from audit log and history."""

import pytest

from gateway.aliases.files import versions
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.versions import VersionNotFound
from gateway.config.settings import Settings

ONE, TWO = (f'[aliases]\n"tier" = "{model}"\n"other" = "C"\n'.encode() for model in "AB")
CHANGED = {"aliases_changed": [{"name": "tier"}]}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "models.toml").write_bytes(ONE)
    return CatalogueFiles.from_settings(Settings(models_config=tmp_path / "models.toml"))


def append_line(files, event, data, diff=None):
    """Append one line, as the auditor writes it."""
    digest = files.history.keep(data)
    before = next(files.audit_log.newest_first()).fields["file"] if event == "applied" else None
    return files.audit_log.append(
        {
            "event": event,
            "time": "2026-11-25T12:00:00.000Z",
            "who": "anna",
            "generation": 1,
            "file": digest,
            "before": before,
            "diff": diff or {},
        }
    )


def test_start_with_the_same_file_is_no_version(files):
    """Starting a gateway does not change the file."""
    append_line(files, "started", ONE)
    append_line(files, "applied", TWO, CHANGED)
    append_line(files, "started", TWO)
    append_line(files, "started", TWO)

    assert [version.number for version in versions.list_versions(files)] == [2, 1]
    assert [version.number for version in versions.list_versions(files, "tier")] == [2, 1]
    assert [version.number for version in versions.list_versions(files, "other")] == [1]
    assert versions.read_previous(files, TWO) == versions.read_previous(files, TWO, "tier") == ONE


def test_version_is_found_by_number_and_by_hash_and_by_nothing_else(files):
    """Not by the number of a line without a new file, and not by two characters of a hash."""
    digest = append_line(files, "started", ONE)["file"]
    append_line(files, "applied", TWO, CHANGED)
    append_line(files, "started", TWO)

    assert (
        versions.read_version(files, "1")
        == versions.read_version(files, "#1")
        == versions.read_version(files, digest[:8])
        == ONE
    )
    for unknown in ("3", "4", "0", digest[:2], "zz"):
        with pytest.raises(VersionNotFound, match="there is no version"):
            versions.read_version(files, unknown)
