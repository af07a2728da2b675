"""Aliases that are tables: every key, and every fault."""

import pytest

from catalogue.load import parse
from catalogue.models import Alias, Hedge, Shadow, Target
from catalogue.toml.faults import FaultyFile

HEADER = '[aliases]\nother = "m"\n[aliases."helexa/x"]\n'  # lines 1 to 3; what is under test begins on line 4
TARGET = 'target = "m"\n'


def read(text):
    catalogue = parse((HEADER + text).encode(), path="models.toml", generation=1, loaded_at=0.0)
    return catalogue.aliases["helexa/x"]


def faults(text):
    with pytest.raises(FaultyFile) as caught:
        read(text)
    return [(fault.line, fault.key, fault.message, fault.hint) for fault in caught.value.faults]


def test_every_key_of_an_alias_is_read():
    """Every key arrives in the type that the gateway uses."""
    alias = read(
        """
        targets = [{ model = "Qwen/Qwen3-8B", weight = 90 }, { model = "Qwen/Qwen3-14B", weight = 10.5 }]
        sticky = "conversation"
        fallback = ["Qwen/Qwen3-1.7B", "m"]
        swap = "cold"
        echo = "alias"
        params = { temperature = 0.2, stop = ["a", "b"], "x.y" = { deep = { er = true } } }
        force = { user = "é" }
        deadline_seconds = 60
        warm_deadline_seconds = 0.5
        shadow = { model = "Qwen/Qwen3-14B", percent = 5 }
        hedge = { after = 1.5, budget_percent = 2.5 }
        """
    )

    assert alias == Alias(
        "helexa/x",
        (Target("Qwen/Qwen3-8B", 90.0), Target("Qwen/Qwen3-14B", 10.5)),
        sticky="conversation",
        fallback=("Qwen/Qwen3-1.7B", "m"),
        swap="cold",
        echo="alias",
        params={"temperature": "0.2", "stop": '["a", "b"]', "x.y": '{"deep": {"er": true}}'},
        force={"user": '"é"'},
        deadline_seconds=60.0,
        warm_deadline_seconds=0.5,
        shadow=Shadow("Qwen/Qwen3-14B", 5.0),
        hedge=Hedge(1.5, 2.5),
    )
    assert alias.resolution is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('target = "a"', (Target("a", 1.0),)),
        ('targets = ["a"]', (Target("a", 1.0),)),
        ('targets = ["a", "b"]', (Target("a", 1.0), Target("b", 1.0))),
        ('targets = [{ model = "a" }, "b"]', (Target("a", 1.0), Target("b", 1.0))),
        (
            'targets = [{ model = "a", weight = 0 }, { model = "b", weight = 3 }]',
            (Target("a", 0.0), Target("b", 3.0)),
        ),
    ],
)
def test_targets_can_be_written_in_several_ways(text, expected):
    """Targets without weights get equal shares."""
    assert read(text).targets == expected


def test_hedge_waits_for_the_p95_by_default():
    """And sends at most 5 % of the requests twice."""
    assert read(TARGET + 'hedge = { after = "p95" }').hedge == Hedge(None, 5.0)
    assert read(TARGET + "hedge = {}").hedge == Hedge(None, 5.0)


def test_target_is_the_one_with_the_most_weight():
    """Displays with room for one model show it; of equal weights, the first target."""
    alias = read('targets = [{model = "a", weight = 1}, {model = "b", weight = 5}, {model = "c", weight = 5}]')

    assert (alias.target, alias.by_weight) == ("b", ("b", "c", "a"))


def test_alias_without_anything_for_the_request_is_plain():
    """The keys about swaps do not affect a request; the others do."""
    for text in ("", 'swap = "cold"', "warm_deadline_seconds = 5", 'sticky = "key"', "fallback = []", "params = {}"):
        assert read(TARGET + text).resolution is not None
    for text in ('echo = "alias"', "deadline_seconds = 5", 'fallback = ["f"]', "params = {a = 1}", "hedge = {}"):
        assert read(TARGET + text).resolution is None
    assert read('targets = ["a", "b"]').resolution is None


@pytest.mark.parametrize(
    ("text", "line", "key", "message", "hint"),
    [
        ("", 3, "target", "is required and missing", "name the model that gets the requests, or several in `targets`"),
        (
            'target = "a"\ntargets = ["b"]', 4, "target", "cannot be combined with `targets`", "keep one of the two",
        ),
        (TARGET + 'stiky = "key"', 5, "stiky", "unknown key `stiky`", "did you mean `sticky`?"),
        (TARGET + 'sticky = "yes"', 5, "sticky", 'must be one of "none", "conversation", "key"', None),
        (TARGET + "swap = true", 5, "swap", "must be a string, not a boolean", "write it in quotes"),
        (TARGET + 'echo = "aliases"', 5, "echo", 'must be one of "model", "alias"', "did you mean `alias`?"),
        ('targets = "a"', 4, "targets", "must be an array, not a string", "write it in [square brackets]"),
        ("targets = []", 4, "targets", "is empty", "name a model id, or remove the alias"),
        ("targets = [1]", 4, "targets[0]", "must be a string, not an integer", "write it in quotes"),
        ('targets = [\n{ model = "a" },\n{ weight = 1 },\n]', 6, "targets[1].model", "is required and missing", None),
        ('targets = [{ model = "a", wait = 1 }]', 4, "targets[0].wait", "unknown key `wait`",
         "did you mean `weight`?"),
        ('targets = [{ model = "a", weight = -1 }]', 4, "targets[0].weight", "must be at least 0", None),
        ('targets = [{ model = "a", weight = nan }]', 4, "targets[0].weight",
         "must be a finite number below 2^53", None),
        ('targets = [\n"a",\n{ model = "a" },\n]', 6, "targets[1].model", '"a" is already used by an earlier entry',
         None),
        ('targets = ["a", "a"]', 4, "targets[1]", '"a" is already used by an earlier entry', None),
        ('targets = [{ model = "a", weight = 0 }]', 4, "targets", "has no target with a weight above 0",
         "give one of them a weight, or remove the alias"),
        ('targets = ["a", { model = "b", weight = 5 }]', 4, "targets",
         "gives some targets a weight and others none", "give all of them a weight, or none"),
        ('target = "other"', 4, "target", "names an alias, not a model", 'name the model: "m"'),
        ('target = "helexa/x"', 4, "target", "names an alias, not a model", "name the model"),
        ('targets = ["a", "other"]', 4, "targets[1]", "names an alias, not a model", 'name the model: "m"'),
        (TARGET + 'fallback = ["helexa/x"]', 5, "fallback[0]", "names an alias, not a model", None),
        (TARGET + 'fallback = ["a", "other"]', 5, "fallback[1]", "names an alias, not a model", None),
        (TARGET + 'fallback = ["a", "b", "a"]', 5, "fallback[2]", '"a" is already used by an earlier entry', None),
        (TARGET + 'fallback = "a"', 5, "fallback", "must be an array, not a string", None),
        (TARGET + 'shadow = { model = "other", percent = 5 }', 5, "shadow.model", "names an alias, not a model", None),
        (TARGET + 'shadow = { model = "a" }', 5, "shadow.percent", "is required and missing", None),
        (TARGET + 'shadow = { model = "a", percent = 101 }', 5, "shadow.percent", "must be at most 100", None),
        (TARGET + 'shadow = { model = "a", percent = -0.1 }', 5, "shadow.percent", "must be at least 0", None),
        (TARGET + "hedge = { budget_percent = 1000 }", 5, "hedge.budget_percent", "must be at most 100", None),
        (TARGET + 'hedge = { after = "p99" }', 5, "hedge.after", 'must be "p95" or a number of seconds', None),
        (TARGET + "hedge = { after = 0 }", 5, "hedge.after", "must be more than 0", None),
        (TARGET + "deadline_seconds = 0", 5, "deadline_seconds", "must be more than 0", None),
        (TARGET + "warm_deadline_seconds = -1", 5, "warm_deadline_seconds", "must be more than 0", None),
        (TARGET + "params = 5", 5, "params", "must be a table, not an integer", "write it in {curly braces}"),
        (TARGET + "params.x = 1979-05-27", 5, "params.x", "must be a value that JSON has, not a date or time",
         "write it as a string, in quotes"),
        (TARGET + "params = { x = [1, [inf]] }", 5, "params.x[1][0]", "must be a finite number below 2^53",
         None),
        (TARGET + "force.x = 1e300", 5, "force.x", "must be a finite number below 2^53", None),
        (TARGET + 'force."" = 1', 5, 'force.""', "must not be empty", None),
        (TARGET + "params.'a\"b' = 1", 5, 'params."a\\"b"', "must not contain quotes or backslashes", None),
        (TARGET + "params = { x = " + "[" * 40 + "]" * 40 + " }", 5, "params.x" + "[0]" * 16,
         "is nested more than 16 levels deep", None),
        (TARGET + "params = { a = 1, b = 2 }\nforce = { b = 3 }", 5, "params.b",
         "is in `force` as well, so this default is never used", "keep one of the two"),
    ],
)  # fmt: skip
def test_fault_of_an_alias_names_line_key_and_what_to_do(text, line, key, message, hint):
    """One mistake gives one fault, on the line of the mistake."""
    [found] = faults(text + "\n")

    assert found[:3] == (line, f'aliases."helexa/x".{key}', message)
    if hint is not None:
        assert found[3] == hint


@pytest.mark.parametrize("key", ["model", "messages", "stream", "prompt", "input"])
@pytest.mark.parametrize("table", ["params", "force"])
def test_alias_cannot_set_keys_that_only_the_client_sets(table, key):
    """Routing has read them before the alias applies, so a default would come too late."""
    [found] = faults(f'{TARGET}{table}.{key} = "x"\n')

    assert found[:3] == (
        5,
        f'aliases."helexa/x".{table}.{key}',
        "cannot be set by an alias: only the client sets it",
    )


def test_all_faults_of_an_alias_are_reported_together():
    """Also if they are of several kinds."""
    text = """\
targets = ["a", "other", "a"]
sticky = "no"
swapp = "cold"
params = { model = "x", y = nan }
force = { y = 07:00:00 }
"""
    assert [(line, key.removeprefix('aliases."helexa/x".')) for line, key, _, _ in faults(text)] == [
        (4, "targets[1]"),
        (5, "sticky"),
        (6, "swapp"),
        (7, "params.model"),
        (7, "params.y"),
        (8, "force.y"),
    ]


def test_hint_for_an_alias_of_an_alias_names_the_model():
    """Whether the other alias is a string or a table."""
    with pytest.raises(FaultyFile) as caught:
        parse(b'[aliases]\na = "b"\n[aliases.b]\ntarget = "m"\n', path="x", generation=1, loaded_at=0.0)

    [fault] = caught.value.faults
    assert (fault.message, fault.hint) == ("names an alias, not a model", 'name the model: "m"')
