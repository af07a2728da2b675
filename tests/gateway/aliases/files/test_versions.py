"""gateway.aliases.files.versions: what trail and history tell together of the files that were in force."""

import pytest

from gateway.aliases.files import versions
from gateway.aliases.files.paths import Records
from gateway.aliases.files.versions import NoVersion
from gateway.config.settings import Settings

ONE, TWO = (f'[aliases]\n"tier" = "{model}"\n"other" = "C"\n'.encode() for model in "AB")
CHANGED = {"aliases_changed": [{"name": "tier"}]}


@pytest.fixture
def records(tmp_path):
    (tmp_path / "models.toml").write_bytes(ONE)
    return Records.of(Settings(models_config=tmp_path / "models.toml"))


def came(records, event, data, diff=None):
    """One line, as an auditor writes it."""
    kept = records.history.keep(data)
    before = next(records.trail.newest_first()).said["file"] if event == "applied" else None
    return records.trail.append(
        {
            "event": event,
            "time": "2026-11-25T12:00:00.000Z",
            "who": "anna",
            "generation": 1,
            "file": kept,
            "before": before,
            "diff": diff or {},
        }
    )


def test_start_with_the_same_file_is_no_version(records):
    """A gateway that is started a hundred times has changed nothing."""
    came(records, "started", ONE)
    came(records, "applied", TWO, CHANGED)
    came(records, "started", TWO)
    came(records, "started", TWO)

    assert [version.number for version in versions.versions(records)] == [2, 1]
    assert [version.number for version in versions.versions(records, "tier")] == [2, 1]
    assert [version.number for version in versions.versions(records, "other")] == [1]
    assert versions.earlier(records, TWO) == versions.earlier(records, TWO, "tier") == ONE


def test_version_is_found_by_number_and_by_hash_and_by_nothing_else(records):
    """Neither by the number of a line that brought no file, nor by two letters."""
    digest = came(records, "started", ONE)["file"]
    came(records, "applied", TWO, CHANGED)
    came(records, "started", TWO)

    assert versions.find(records, "1") == versions.find(records, "#1") == versions.find(records, digest[:8]) == ONE
    for nobody in ("3", "4", "0", digest[:2], "zz"):
        with pytest.raises(NoVersion, match="there is no version"):
            versions.find(records, nobody)
