"""What changed, for people and for machines."""

import json

from catalogue.diff import diff
from catalogue.load import parse
from catalogue.models import Catalogue


def catalogue(text):
    return parse(text.encode(), path="models.toml", generation=1, loaded_at=0.0)


OLD = catalogue("""
[[models]]
id = "stays"
harness = "h"
[[models]]
id = "goes"
harness = "h"
[[models]]
id = "changes"
harness = "h"
limit.context = 5
[aliases]
same = "stays"
gone = "goes"
large = "goes"
""")
NEW = catalogue("""
[[models]]
id = "comes"
harness = "h"
[[models]]
id = "changes"
harness = "h"
pinned_on = ["beast", "mule"]
min_devices = 2
limit.context = 6
[[models]]
id = "stays"
harness = "h"
[aliases]
large = "comes"
same = "stays"
fresh = "stays"
""")


def test_diff_reads_as_one_line():
    """Aliases first: they are what operators change."""
    assert str(diff(OLD, NEW)) == (
        "~alias large: goes -> comes; +alias fresh -> stays; -alias gone -> goes; +model comes; -model goes; "
        "~model changes: min_devices 1 -> 2, pinned_on [] -> [beast, mule], limit {context=5} -> {context=6}"
    )


def test_diff_survives_json():
    """The audit trail keeps it."""
    assert json.loads(json.dumps(diff(OLD, NEW).as_json())) == {
        "models_added": ["comes"],
        "models_removed": ["goes"],
        "models_changed": [
            {
                "id": "changes",
                "fields": [
                    {"name": "min_devices", "old": 1, "new": 2},
                    {"name": "pinned_on", "old": [], "new": ["beast", "mule"]},
                    {
                        "name": "limit",
                        "old": {"context": 5, "input": None, "output": None},
                        "new": {"context": 6, "input": None, "output": None},
                    },
                ],
            }
        ],
        "aliases_added": [{"name": "fresh", "target": "stays"}],
        "aliases_removed": [{"name": "gone", "target": "goes"}],
        "aliases_retargeted": [{"name": "large", "old": "goes", "new": "comes"}],
    }


def test_same_meaning_in_other_words_is_no_change():
    """A comment, an order, a way of writing."""
    reworded = catalogue("# hi\n[[models]]\nharness = 'h'\nid = 'x'\nmin_devices = 1\n")
    plain = catalogue('models = [{id = "x", harness = "h"}]')

    assert not diff(plain, reworded)
    assert str(diff(plain, reworded)) == "no change in meaning"
    assert diff(Catalogue(), plain)
