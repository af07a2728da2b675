"""`CORTEX_` variables: they beat the file, and an odd one is only a warning."""

from functools import partial

import pytest
from fakes.configs import faults, write_config
from hypothesis import given
from hypothesis import strategies as st

from catalogue.models import FaultyFile
from gateway.config.keys import SECTIONS, SETTINGS_FIELDS
from gateway.config.load import load
from gateway.config.settings import Listen, NeuronSettings, Settings

SECRET = "hunter2-hunter2"


@pytest.fixture
def config(tmp_path):
    """Writes a cortex.toml and returns its path."""
    return partial(write_config, tmp_path)


@pytest.mark.parametrize(
    ("variable", "value", "read", "expected"),
    [
        ("CORTEX_GATEWAY__LISTEN", "127.0.0.1:9000", lambda s: s.gateway.listen, Listen("127.0.0.1", 9000)),
        ("CORTEX_GATEWAY__LISTEN", '"127.0.0.1:9000"', lambda s: s.gateway.listen, Listen("127.0.0.1", 9000)),
        ("cortex_Gateway__access_LOG", "false", lambda s: s.gateway.access_log, False),
        ("CORTEX_DEADLINES__IDLE_SECONDS", "1.5", lambda s: s.deadlines.idle_seconds, 1.5),
        ("CORTEX_GATEWAY__CORS_ORIGINS", '["a", "b"]', lambda s: s.gateway.cors_origins, ("a", "b")),
        ("CORTEX_POLL", "{misses = 7}", lambda s: (s.poll.misses, s.poll.interval_seconds), (7, 2)),
        (
            "CORTEX_NEURONS", '[{name="a",endpoint="http://a:13131"}]', lambda s: s.neurons,
            (NeuronSettings("a", "http://a:13131"),),
        ),
        ("CORTEX_GATEWAY__OWNED_BY", "42", lambda s: s.gateway.owned_by, "42"),  # a string is wanted: taken as written
        ("CORTEX_GATEWAY__OWNED_BY", "a = 1\nb = 2", lambda s: s.gateway.owned_by, None),
    ],
)  # fmt: skip
def test_environment_beats_the_file(config, variable, value, read, expected):
    """Contract section 1: any case, TOML where it parses, else a string."""
    path = config("""
        [gateway]
        listen = "127.0.0.1:1"
        [poll]
        interval_seconds = 2
        [[neurons]]
        name = "file"
        endpoint = "http://file"
    """)
    if expected is None:
        assert len(faults(path, {variable: value})) == 1
        return
    loaded = load(path, {variable: value, "PATH": "/bin", "CORTEXT": "x"})

    assert read(loaded.settings) == expected
    assert loaded.warnings == ()


def test_single_key_beats_its_whole_table(config):
    """Whatever order the environment has them in."""
    environ = {"CORTEX_POLL__MISSES": "9", "cortex_poll": "{misses = 7, timeout_seconds = 1}"}
    for order in (environ, dict(reversed(environ.items()))):
        poll = load(config(""), order).settings.poll
        assert (poll.misses, poll.timeout_seconds) == (9, 1)


def test_unknown_variable_is_a_warning_with_a_hint(config):
    """Kubernetes sets some beside every service called cortex; a typo should still be heard of."""
    environ = {
        "CORTEX_GATEWAY__LISTN": SECRET,
        "CORTEX_PORT_31313_TCP_ADDR": SECRET,
        "CORTEX_NEURONS__0__NAME": SECRET,
        "CORTEX_": SECRET,
        "CORTEX_CONFIG": "cortex.toml",  # the command line's own
    }
    loaded = load(config(""), environ)

    assert loaded.settings == Settings()
    told = {warning.path: warning.hint for warning in loaded.warnings}
    assert told.keys() == environ.keys() - {"CORTEX_CONFIG"}
    assert told["CORTEX_GATEWAY__LISTN"] == "did you mean CORTEX_GATEWAY__LISTEN?"
    assert SECRET not in str(loaded.warnings)


def test_one_key_under_two_spellings_is_a_warning():
    """One of them holds, and which is said."""
    loaded = load(None, {"CORTEX_POLL__MISSES": "4", "cortex_poll__misses": "5"})

    assert loaded.settings.poll.misses == 4
    assert [warning.path for warning in loaded.warnings] == ["cortex_poll__misses"]


def test_table_that_does_not_parse_is_told_as_such():
    """What is no TOML is taken as text, and text is no list: a bracket is missing, not two too few."""
    with pytest.raises(FaultyFile) as caught:
        load(None, {"CORTEX_NEURONS": '[{name="a"'})
    [fault] = caught.value.faults
    assert (fault.path, fault.hint) == ("CORTEX_NEURONS", "its text does not read as TOML")


def test_environment_over_a_broken_table_is_a_fault_of_the_file(config):
    """The override does not paper over it."""
    [found] = faults(config("poll = 3"), {"CORTEX_POLL__MISSES": "4"})
    assert found[:2] == (1, "poll")


@pytest.mark.parametrize("value", [SECRET, "12345678", "true", "1979-05-27", "1e5"])
def test_token_from_the_environment_is_taken_as_written(value):
    """A token of digits is a token."""
    assert load(None, {"CORTEX_ADMIN__TOKEN": value}).settings.admin.token == value


KEYS = [section.upper() for section in SETTINGS_FIELDS] + [
    f"{section}__{key}".upper() for section, (_, rows) in SECTIONS.items() for key in rows
]


@given(st.dictionaries(st.sampled_from(KEYS).map("CORTEX_{}".format), st.text() | st.sampled_from(["1", "{}", "[[]]"])))
def test_no_environment_raises_anything_but_faulty_file(environ):
    """Whatever is in it."""
    try:
        load(None, environ)
    except FaultyFile as error:
        reasons = error.faults
    else:
        return
    assert reasons
