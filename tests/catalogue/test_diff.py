"""Differences between catalogues: the line for a log, and the JSON."""

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


def test_diff_is_one_line_of_text():
    """Aliases come first: they are what operators change most."""
    assert str(diff(OLD, NEW)) == (
        "~alias large: goes -> comes; +alias fresh -> stays; -alias gone -> goes; +model comes; -model goes; "
        "~model changes: min_devices 1 -> 2, pinned_on [] -> [beast, mule], limit {context=5} -> {context=6}"
    )


DEFAULTS = {
    "sticky": "none",
    "fallback": [],
    "swap": "warm",
    "echo": "model",
    "clamp_max_tokens": None,
    "params": {},
    "force": {},
    "deadline_seconds": None,
    "warm_deadline_seconds": None,
    "shadow": None,
    "hedge": None,
}


def test_diff_survives_json():
    """The audit log stores it."""
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
        "aliases_added": [{"name": "fresh", **DEFAULTS, "targets": [{"model": "stays", "weight": 1.0}]}],
        "aliases_removed": [{"name": "gone", **DEFAULTS, "targets": [{"model": "goes", "weight": 1.0}]}],
        "aliases_changed": [
            {
                "name": "large",
                "fields": [
                    {
                        "name": "targets",
                        "old": [{"model": "goes", "weight": 1.0}],
                        "new": [{"model": "comes", "weight": 1.0}],
                    }
                ],
            }
        ],
        "aliases_warming": [],
        "swaps_failed": [],
    }


def test_changed_alias_is_listed_key_by_key():
    """The targets first, then the other changed keys; unchanged keys are left out."""
    before = catalogue("""
        [aliases.balanced]
        targets = [{ model = "a", weight = 90 }, { model = "b", weight = 10 }]
        params = { temperature = 0.2 }
        hedge = { after = "p95" }
        fallback = ["c"]
    """)
    after = catalogue("""
        [aliases.balanced]
        targets = [{ model = "a", weight = 75 }, { model = "b", weight = 25 }]
        params = { temperature = 0.2, stop = ["x"] }
        sticky = "key"
        swap = "cold"
        fallback = ["c"]
        shadow = { model = "d", percent = 5 }
    """)

    assert str(diff(before, after)) == (
        "~alias balanced: [a 90, b 10] -> [a 75, b 25], sticky none -> key, swap warm -> cold, "
        "params {temperature=0.2} -> {temperature=0.2, stop=[x]}, shadow unset -> {model=d, percent=5.0}, "
        "hedge {after=p95, budget_percent=5.0} -> unset"
    )
    assert json.loads(json.dumps(diff(before, after).as_json()))["aliases_changed"][0]["fields"][1] == {
        "name": "sticky",
        "old": "none",
        "new": "key",
    }


def test_table_equal_to_the_plain_string_is_no_change():
    """The weight of a single target has no effect."""
    plain = catalogue('aliases = { x = "a" }')

    for same in ('{ target = "a" }', '{ targets = ["a"] }', '{ targets = [{ model = "a", weight = 90 }] }'):
        assert not diff(plain, catalogue(f"aliases = {{ x = {same} }}"))


def test_other_notation_with_the_same_meaning_is_no_change():
    """Comments, order, and inline tables."""
    reworded = catalogue("# hi\n[[models]]\nharness = 'h'\nid = 'x'\nmin_devices = 1\n")
    plain = catalogue('models = [{id = "x", harness = "h"}]')

    assert not diff(plain, reworded)
    assert str(diff(plain, reworded)) == "no change in meaning"
    assert diff(Catalogue(), plain)
