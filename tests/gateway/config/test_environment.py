"""`CORTEX_` variables: they override the file, and an unknown one is only a warning."""

from functools import partial

import pytest
from fakes.configs import faults, write_config
from hypothesis import given
from hypothesis import strategies as st

from catalogue.toml.faults import FaultyFile
from gateway.config.environment import known_keys
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
        ("CORTEX_GATEWAY__OWNED_BY", "42", lambda s: s.gateway.owned_by, "42"),  # the key is text: taken as written
        ("CORTEX_GATEWAY__OWNED_BY", "a = 1\nb = 2", lambda s: s.gateway.owned_by, None),
    ],
)  # fmt: skip
def test_variable_overrides_the_file(config, variable, value, read, expected):
    """In any case; the value is TOML if it parses as TOML, else text."""
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


def test_variable_of_a_key_overrides_the_variable_of_its_table(config):
    """In either order of the environment."""
    environ = {"CORTEX_POLL__MISSES": "9", "cortex_poll": "{misses = 7, timeout_seconds = 1}"}
    for order in (environ, dict(reversed(environ.items()))):
        poll = load(config(""), order).settings.poll
        assert (poll.misses, poll.timeout_seconds) == (9, 1)


def test_unknown_variable_is_a_warning_with_a_hint(config):
    """Kubernetes sets some for a service with the name cortex; an operator may have made a typing mistake."""
    environ = {
        "CORTEX_GATEWAY__LISTN": SECRET,
        "CORTEX_PORT_31313_TCP_ADDR": SECRET,
        "CORTEX_NEURONS__0__NAME": SECRET,
        "CORTEX_": SECRET,
        "CORTEX_CONFIG": "cortex.toml",  # belongs to the command line
    }
    loaded = load(config(""), environ)

    assert loaded.settings == Settings()
    hints = {warning.path: warning.hint for warning in loaded.warnings}
    assert hints.keys() == environ.keys() - {"CORTEX_CONFIG"}
    assert hints["CORTEX_GATEWAY__LISTN"] == "did you mean CORTEX_GATEWAY__LISTEN?"
    assert SECRET not in str(loaded.warnings)


def test_one_key_under_two_spellings_is_a_warning():
    """The first one in sorted order applies; the other is reported."""
    loaded = load(None, {"CORTEX_POLL__MISSES": "4", "cortex_poll__misses": "5"})

    assert loaded.settings.poll.misses == 4
    assert [warning.path for warning in loaded.warnings] == ["cortex_poll__misses"]


def test_variable_that_is_not_toml_is_reported_as_such():
    """Its text is a string, but the advice is about the TOML and not about strings."""
    with pytest.raises(FaultyFile) as caught:
        load(None, {"CORTEX_NEURONS": '[{name="a"'})
    [fault] = caught.value.faults
    assert (fault.path, fault.hint) == ("CORTEX_NEURONS", "the text of the variable is not valid TOML")


def test_environment_over_a_broken_table_is_a_fault_of_the_file(config):
    """The override does not hide it."""
    [found] = faults(config("poll = 3"), {"CORTEX_POLL__MISSES": "4"})
    assert found[:2] == (1, "poll")


@pytest.mark.parametrize("value", [SECRET, "12345678", "true", "1979-05-27", "1e5"])
def test_token_from_the_environment_is_taken_as_written(value):
    """A token may consist of digits."""
    assert load(None, {"CORTEX_ADMIN__TOKEN": value}).settings.admin.token == value


VALUES = [
    *(
        "1",
        "-1",
        "{}",
        "[[]]",
        "[{}]",
        "true",
        "nan",
        "1e999",
        "0x" + "f" * 5000,
        "1979-05-27",
        "'x'",
        "['x']",
        "{x = 1}",
    ),
    *("{listen = 1}", "{listen = 'a:0', metrics_listen = 'a:0'}", "{token = {}, public = 1, tokn = []}"),
    "[{name = 1, endpoint = 'http://a/v1', kind = 'openai', serves = {a = 1, \"\" = 'b'}}, {models = 1}, 3]",
    "[{name = 'b', endpoint = [], dialects = {}}, {name = 'b', kind = [], api_key = '', base_path = 1}]",
]
KEYS = ["__".join(key).upper() for key in known_keys()]


@given(st.dictionaries(st.sampled_from(KEYS).map("CORTEX_{}".format), st.text() | st.sampled_from(VALUES)))
def test_no_environment_raises_anything_but_faulty_file(environ):
    """Random texts in known variables."""
    try:
        load(None, environ)
    except FaultyFile as error:
        reasons = error.faults
    else:
        return
    assert reasons
