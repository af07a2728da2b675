"""Settings from a file and the environment, or every fault of them."""

import dataclasses
import json
import re
import traceback
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import get_args

import pytest
from fakes.configs import faults, write_config
from hypothesis import given
from hypothesis import strategies as st

from catalogue.toml.faults import FaultyFile
from gateway.config.engine_traits import DialectName
from gateway.config.environment import known_keys
from gateway.config.load import load
from gateway.config.removed_keys import REMOVED_KEYS
from gateway.config.settings import Listen, NeuronSettings, Settings

ROOT = Path(__file__).parents[3]
SECRET = "hunter2-hunter2"
DIALECTS = get_args(DialectName)
SECTIONS = {
    section.name: type(section.default) for section in dataclasses.fields(Settings) if is_dataclass(section.default)
}
NEURON = "[[neurons]]\nname = 'a'\nendpoint = 'http://a'"
ENGINE = "[[neurons]]\nname = 'a'\nkind = 'openai'\nendpoint = 'http://a'"
PASTED = ENGINE.replace("http://a", "http://a/v1")


@pytest.fixture
def config(tmp_path):
    """Writes a cortex.toml and returns its path."""
    return partial(write_config, tmp_path)


def test_without_file_and_variables_the_defaults_apply():
    """They listen on loopback only."""
    loaded = load(None, {})

    assert loaded.settings == Settings()
    assert str(loaded.settings.gateway.listen) == "127.0.0.1:31313"
    assert str(loaded.settings.gateway.metrics_listen) == "127.0.0.1:31314"
    assert loaded.warnings == ()


def test_keys_that_the_file_leaves_out_have_their_defaults(config):
    """Also within a section; `*_seconds` accept fractions."""
    path = config("""
        [gateway]
        listen = "[::1]:9000"
        cors_origins = ["https://a.example"]
        [deadlines]
        connect_seconds = 0.25
        [[neurons]]
        name = "beast"
        endpoint = "http://beast.lan:13131/"
        [[neurons]]
        name = "cloud"
        endpoint = "https://api.example"
        kind = "openai"
    """)

    read = load(path, {}).settings

    assert read.gateway.listen == Listen("::1", 9000)
    assert str(read.gateway.listen) == "[::1]:9000"
    assert read.gateway.cors_origins == ("https://a.example",)
    assert read.gateway.drain_seconds == 300
    assert (read.deadlines.connect_seconds, read.deadlines.idle_seconds) == (0.25, 300)
    assert read.neurons == (
        NeuronSettings("beast", "http://beast.lan:13131"),
        NeuronSettings("cloud", "https://api.example", "openai"),
    )


@pytest.mark.parametrize("section", SECTIONS)
def test_defaults_are_valid_values_themselves(section):
    """The checks do not run on defaults, so a default could be a value that the file may not have."""
    kind = SECTIONS[section]
    defaults = {field.name: getattr(kind(), field.name) for field in dataclasses.fields(kind)}
    written = {key: value for key, value in defaults.items() if value is not None}
    environ = {f"CORTEX_{section}__{key}".upper(): toml_of(value) for key, value in written.items()}

    read = load(None, environ)

    assert defaults.keys() >= written.keys()
    assert getattr(read.settings, section) == kind()
    assert read.warnings == ()
    for key, value in written.items():
        assert getattr(getattr(read.settings, section), key) == value


def toml_of(value):
    if dataclasses.is_dataclass(value) and not isinstance(value, Listen):
        return "{}"
    return json.dumps(str(value) if isinstance(value, Listen) else value)


def test_every_part_of_the_settings_is_frozen():
    """Many requests share them."""
    settings = load(None, {"CORTEX_NEURONS": '[{name = "a", endpoint = "http://a"}]'}).settings
    for part in (settings, settings.neurons[0], *(getattr(settings, section) for section in SECTIONS)):
        for field in dataclasses.fields(part):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(part, field.name, None)


# Paths.


def test_relative_models_config_is_beside_the_config_file(config, monkeypatch, tmp_path_factory):
    """Never to the working directory, whether the file or the environment sets the key."""
    path = config('models_config = "conf/models.toml"')
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    beside = path.parent / "conf/models.toml"

    assert load(path, {}).settings.models_config == beside
    assert load(path, {"CORTEX_MODELS_CONFIG": "models.toml"}).settings.models_config == path.parent / "models.toml"
    monkeypatch.chdir(path.parent)
    assert load(Path("cortex.toml"), {}).settings.models_config == beside


def test_spool_dir_is_beside_the_config_file_too(config):
    """Without a config file a relative path is refused."""
    path = config('[gateway]\nspool_dir = "spool"\n[limits]\nspool_mb = 0.5')

    assert load(path, {}).settings.gateway.spool_dir == path.parent / "spool"
    assert load(path, {}).settings.limits.spool_mb == 0.5
    assert load(path, {"CORTEX_GATEWAY__SPOOL_DIR": "/srv/spool"}).settings.gateway.spool_dir == Path("/srv/spool")
    assert load(None, {}).settings.gateway.spool_dir is None
    with pytest.raises(FaultyFile, match="relative"):
        load(None, {"CORTEX_GATEWAY__SPOOL_DIR": "spool"})


def test_absolute_models_config_stays(config):
    """It does not depend on where the config file is."""
    path = config('models_config = "/etc/cortex/models.toml"')
    assert load(path, {}).settings.models_config == Path("/etc/cortex/models.toml")


def test_relative_models_config_without_a_config_file_is_refused():
    """There is no directory it could be relative to."""
    [(_, key, message, _)] = faults(None, {"CORTEX_MODELS_CONFIG": "models.toml"})

    assert key == "models_config"
    assert "relative" in message


def test_every_key_of_an_engine_is_read(config):
    """The keys for `kind = "openai"`; base paths lose their trailing slash."""
    more = "api_key = 'k'\nbase_path = '/api/'\nmodels = ['m']\nserves = { 'Q/Q' = 'q:8b' }\nvram_mb = 8192"

    [engine] = load(config(f"{ENGINE}\nengine = 'ollama'\n{more}"), {}).settings.neurons

    assert engine == NeuronSettings("a", "http://a", "openai", "k", "/api", ("m",), {"Q/Q": "q:8b"}, 8192, "ollama")


@pytest.mark.parametrize(
    ("more", "dialects"),
    [
        ("engine = 'cortex'", DIALECTS),
        ("engine = 'cortex'\ndialects = ['openai']", ("openai",)),
        ("engine = 'vllm'", ("openai",)),
    ],
)
def test_another_cortex_speaks_all_dialects_by_default(config, more, dialects):
    """Unless its table lists some."""
    [engine] = load(config(f"{ENGINE}\n{more}"), {}).settings.neurons

    assert engine.dialects == dialects


@pytest.mark.parametrize("given", ["/", ""])
def test_base_path_may_be_the_root(config, given):
    """The API begins at the root of the server."""
    [engine] = load(config(f"{ENGINE}\nbase_path = '{given}'"), {}).settings.neurons

    assert engine.base_path == ""


def test_endpoint_may_end_with_v1_if_base_path_is_set(config):
    """An explicit base path shows that it is intended."""
    [engine] = load(config(f"{PASTED}\nbase_path = '/v1'"), {}).settings.neurons

    assert (engine.endpoint, engine.base_path) == ("http://a/v1", "/v1")


# Faults.


@pytest.mark.parametrize(
    ("text", "line", "key", "part", "hint"),
    [
        ("[gatway]", 1, "gatway", "unknown key", "did you mean `gateway`?"),
        ("[gateway]\nlisen = 'a:1'", 2, "gateway.lisen", "unknown key", "did you mean `listen`?"),
        ("[gateway]\nidle_seconds = 1", 2, "gateway.idle_seconds", "unknown", "`idle_seconds` belongs in [deadlines]"),
        (
            "[gateway]\nmodels_config = 'x'", 2, "gateway.models_config", "unknown",
            "`models_config` belongs at the top of the file, before the first [header]",
        ),
        ("gateway = 1", 1, "gateway", "must be a table", "write [gateway] on a line of its own"),
        ("[gateway]\nlisten = 31313", 2, "gateway.listen", "must be a string", "write it in quotes"),
        ("[gateway]\nlisten = ':31313'", 2, "gateway.listen", "must be host:port", None),
        ("[gateway]\nlisten = '::1:31313'", 2, "gateway.listen", "must be host:port", None),
        ("[gateway]\nlisten = 'localhost'", 2, "gateway.listen", "must be host:port", None),
        ("[gateway]\nlisten = '[12:::1]:1'", 2, "gateway.listen", "not an IP address", None),
        ("[gateway]\nlisten = '1.2.3.256:1'", 2, "gateway.listen", "not an IP address", None),
        ("[gateway]\nlisten = 'a:65536'", 2, "gateway.listen", "port above 65535", None),
        ("[gateway]\nlisten = '127.0.0.1:31314'", 2, "gateway.listen", "same address as metrics_listen", None),
        ("[gateway]\nlisten = 'a:1'\nmetrics_listen = 'a:1'", 3, "gateway.metrics_listen", "same address", None),
        ("[gateway]\naccess_log = 1", 2, "gateway.access_log", "must be true or false", None),
        ("[gateway]\nbody_limit_mb = 0", 2, "gateway.body_limit_mb", "must be more than 0", None),
        ("[gateway]\nhttp_server = 'hypercorm'", 2, "gateway.http_server", "one of", "did you mean `hypercorn`?"),
        ("[gateway]\ndrain_seconds = -0.5", 2, "gateway.drain_seconds", "must be at least 0", None),
        ("[deadlines]\nidle_seconds = 0", 2, "deadlines.idle_seconds", "must be more than 0", None),
        ("[deadlines]\nidle_seconds = nan", 2, "deadlines.idle_seconds", "finite", None),
        ("[deadlines]\nidle_seconds = '5'", 2, "deadlines.idle_seconds", "must be a number", "write it without quotes"),
        ("[poll]\nmisses = 0", 2, "poll.misses", "must be at least 1", None),
        ("[poll]\nmisses = 1.5", 2, "poll.misses", "must be an integer", None),
        ("[eviction]\nstrateg = 'lru'", 2, "eviction.strateg", "unknown key", None),
        ("[retries]\nattempts = -1", 2, "retries.attempts", "must be at least 0", None),
        ("[ledger]\nkeep_days = 36501", 2, "ledger.keep_days", "must be at most 36500", None),
        ("[neurons]\nname = 'a'", 1, "neurons", "must be an array of tables", "write [[neurons]], in double brackets"),
        ("[[neurons]]\nname = 'a'", 1, "neurons[0].endpoint", "required and missing", None),
        ("[[neurons]]\nendpoint = 'http://a'\nname = ''", 3, "neurons[0].name", "must not be empty", None),
        ("[[neurons]]\nname = 'a'\nendpoint = 'http://a'\nkind = 'x'", 4, "neurons[0].kind", "must be one of", None),
        (f"{NEURON}\nserves = {{}}", 4, "neurons[0].serves", 'for kind = "openai" only', None),
        (f"{ENGINE}\nserve = {{}}", 5, "neurons[0].serve", "unknown key", "did you mean `serves`?"),
        (f"{ENGINE}\nserves = 'a'", 5, "neurons[0].serves", "must be a table", None),
        (f"{ENGINE}\nserves.'a/b' = 1", 5, 'neurons[0].serves."a/b"', "must be a string", "write it in quotes"),
        (f"{ENGINE}\nserves = {{a = ''}}", 5, "neurons[0].serves.a", "must not be empty", None),
        (f"{ENGINE}\nmodels = 'a'", 5, "neurons[0].models", "must be an array", None),
        (f"{ENGINE}\nvram_mb = 0", 5, "neurons[0].vram_mb", "must be at least 1", None),
        (f"{ENGINE}\nengine = 'olama'", 5, "neurons[0].engine", "one of", "did you mean `ollama`?"),
        (f"{ENGINE}\nbase_path = 'v1'", 5, "neurons[0].base_path", "must be a path", None),
        (f"{ENGINE}\nbase_path = '/a/../b'", 5, "neurons[0].base_path", "must be a path", None),
        (f"{ENGINE}\nbase_path = '//a'", 5, "neurons[0].base_path", "must be a path", None),
        (f"{ENGINE}\nbase_path = '/a?x'", 5, "neurons[0].base_path", "must be a path", None),
        (PASTED, 4, "neurons[0].endpoint", "ends with /v1", None),
        ("x = [", 1, None, "not TOML", None),
    ],
)  # fmt: skip
def test_fault_names_line_key_and_what_to_do(config, text, line, key, part, hint):
    """One mistake gives one fault, on the line of the mistake."""
    [found] = faults(config(text))

    assert found[:2] == (line, key)
    assert part in found[2]
    if hint is not None:
        assert found[3] == hint


@pytest.mark.parametrize(
    "endpoint",
    [
        "beast:13131", "ftp://beast", "http://", "http:///x", "http://a:0", "http://a:99999", "http://a:b", "http://[::1",
        "http://a/?x=1", "http://a/#x", "http://a?", f"http://user:{SECRET}@a", f"http://{SECRET}@a", "http://a//x",
        "http://a/../x", "http://a/x/.", "http://a/x y", "http://a\\b", " http://a",
        "http://a..b", f"http://{'a' * 64}.lan",
    ],
)  # fmt: skip
def test_endpoint_that_is_no_plain_base_url_is_refused_without_quoting_it(config, endpoint):
    """Paths are appended to it, and a fault could reveal a password in the URL."""
    [found] = faults(config(f"[[neurons]]\nname = 'a'\nendpoint = '{endpoint}'"))

    assert found[:2] == (3, "neurons[0].endpoint")
    assert SECRET not in str(found)


def test_all_faults_are_reported_together(config):
    """Those of the file in its order, those of variables with their names."""
    path = config("""\
[gateway]
listn = "a:1"
[[neurons]]
name = "a"
endpoint = "http://a"
[[neurons]]
name = "a"
endpoint = "nonsense"
[poll]
misses = 0
""")
    with pytest.raises(FaultyFile) as caught:
        load(path, {"CORTEX_POLL__INTERVAL_SECONDS": "soon"})

    assert [(fault.path, fault.line, fault.key) for fault in caught.value.faults] == [
        ("CORTEX_POLL__INTERVAL_SECONDS", None, "poll.interval_seconds"),
        (str(path), 2, "gateway.listn"),
        (str(path), 7, "neurons[1].name"),
        (str(path), 8, "neurons[1].endpoint"),
        (str(path), 10, "poll.misses"),
    ]


def test_missing_file_is_a_fault(tmp_path):
    """The operator named the file."""
    [found] = faults(tmp_path / "none.toml")
    assert found == (None, None, "cannot be read: No such file or directory", None)


def test_admin_token_is_deprecated(config):
    """Keys replace it; it still works."""
    path = config("[admin]\ntoken = 't'")

    [warning] = load(path, {}).warnings
    assert (warning.line, warning.key, warning.message) == (2, "admin.token", "is deprecated")
    assert "cortex key create NAME --verbs read,operate,keys" in warning.hint


@pytest.mark.parametrize("address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "[fe80::1%eth0]:1"])
def test_gateway_that_others_reach_must_say_whether_they_need_keys(config, address):
    """On loopback, and by a name, nothing needs to be said: `serve` looks where the name leads to."""
    text = f"[gateway]\nlisten = '{address}'"
    [(line, key, message, hint)] = faults(config(text))
    assert (line, key) == (2, "gateway.listen")
    assert "is reached from other machines" in message
    assert 'mode = "keys"' in hint
    for mode in ("keys", "open"):
        assert load(config(f"{text}\n[access]\nmode = '{mode}'"), {}).warnings == ()
    for listen in ("127.0.0.2:1", "[::1]:1", "localhost:1", "gpu-1:1"):
        assert load(config(f"[gateway]\nlisten = '{listen}'"), {}).warnings == ()


def test_store_url_must_name_a_database(config):
    """No message has the password."""
    [(line, key, message, hint)] = faults(config("[store]\nurl = 'mysql://a:secret@b/c'"))
    assert (line, key) == (2, "store.url")
    assert message == "must begin with sqlite:/// or postgresql://"
    assert "secret" not in message + hint


def test_two_neurons_with_one_endpoint_are_a_warning(config):
    """Requests work, but the neuron is counted twice."""
    path = config("[[neurons]]\nname='a'\nendpoint='http://x'\n[[neurons]]\nname='b'\nendpoint='http://x/'")

    [warning] = load(path, {}).warnings

    assert (warning.line, warning.key) == (6, "neurons[1].endpoint")


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_removed_key_is_a_warning_for_one_release(config, key):
    """A gateway with yesterday's file starts; the warning has the line, or the variable."""
    *section, name = key
    path = config(f"[{'.'.join(section)}]\n{name} = 'whatever it was'")
    variable = f"CORTEX_{'__'.join(key)}".upper()

    by_file, by_variable = load(path, {}), load(None, {variable: "x"})

    assert by_file.settings == by_variable.settings == Settings()
    [warning] = by_file.warnings
    assert (warning.path, warning.line, warning.key) == (str(path), 2, ".".join(key))
    assert warning.message == REMOVED_KEYS[key]
    assert warning.hint == "remove the key; the next release refuses it"
    assert [warning.path for warning in by_variable.warnings] == [variable]


@pytest.mark.parametrize("key", REMOVED_KEYS)
def test_removed_key_is_no_setting(key):
    """Neither a field nor a key that hints suggest."""
    assert key not in known_keys()


def test_every_key_of_the_settings_is_read_somewhere():
    """A key without a reader has no effect; it belongs into the table of removed keys."""
    code = "\n".join(path.read_text() for path in ROOT.glob("gateway/**/*.py") if path.parent.name != "config")
    for section, name in (key for key in known_keys() if len(key) == 2):
        phase = name.removesuffix("_seconds")  # a deadline is looked up by the name of its phase
        assert re.search(rf"\.{name}\b", code) or (section == "deadlines" and f'"{phase}"' in code), name
    for field in dataclasses.fields(NeuronSettings):
        assert re.search(rf"\.{field.name}\b", code), field.name


# Secrets.


def test_secret_is_in_no_output(config):
    """Neither in a repr nor in a fault nor in a traceback."""
    loaded = load(config(f'[admin]\ntoken = "{SECRET}"'), {})
    assert loaded.settings.admin.token == SECRET
    assert SECRET not in repr(loaded)

    wrong = [
        f'token = "{SECRET} x"',
        f'token = ["{SECRET}"]',
        f'tokn = "{SECRET}"',
        f'token = "{SECRET}',
        f"token = {SECRET}",
    ]
    for line in ("api_key = ['{}']", "api_key = '{} x'", "api_ky = '{}'"):
        assert SECRET not in repr(faults(config(f"{ENGINE}\n{line.format(SECRET)}")))
    assert SECRET not in repr(faults(config(f"{NEURON}\napi_key = '{SECRET}'")))
    assert SECRET not in repr(load(config(f"{ENGINE}\napi_key = '{SECRET}'"), {}))
    for line in wrong:
        with pytest.raises(FaultyFile) as caught:
            load(config(f"[admin]\n{line}"), {"CORTEX_ADMIN__X": SECRET})
        assert SECRET not in "".join(traceback.format_exception(caught.value)).replace(repr(line), "")


# Fuzz.


@given(st.binary())
def test_no_file_raises_anything_but_faulty_file(tmp_path_factory, data):
    """Random bytes."""
    path = tmp_path_factory.mktemp("fuzz") / "cortex.toml"
    path.write_bytes(data)
    try:
        load(path, {})
    except FaultyFile as error:
        reasons = error.faults
    else:
        return
    assert reasons


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *(("pass_request_headers", name) for name in ("Authorization", "cookie", "x-forwarded-for", "sec-ch-ua", "te")),
        *(("pass_headers", name) for name in ("Set-Cookie", "access-control-allow-origin", "server", "x-cortex-node")),
        *((key, name) for key in ("pass_request_headers", "pass_headers") for name in ("x-*", "a b", "connection")),
    ],
)
def test_headers_that_never_pass_cannot_be_listed(config, key, name):
    """Nor can what is no header name; there are no wildcards."""
    with pytest.raises(FaultyFile) as faulty:
        load(config(f'[gateway]\n{key} = ["{name}"]'), {})

    assert len(faulty.value.faults) == 1


def test_listed_headers_are_lower_case(config):
    """As headers are compared."""
    gateway = load(
        config('[gateway]\npass_request_headers = ["X-Tenant"]\npass_headers = ["X-Queue"]'), {}
    ).settings.gateway

    assert (gateway.pass_request_headers, gateway.pass_headers) == (("x-tenant",), ("x-queue",))


def test_file_that_is_far_too_large_is_not_read(tmp_path):
    """A mistyped path may name a disk image."""
    path = tmp_path / "cortex.toml"
    with path.open("wb") as file:
        file.truncate(10 * 1024**3)  # sparse

    assert faults(path) == [(None, None, "is larger than 4 MiB", "check that it is the right file")]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/chat/completions/", "/v1/models", "/v1/messages"])
@pytest.mark.parametrize("kind", ["neuron", "openai"])
def test_endpoint_that_is_the_path_of_a_request_is_refused(config, kind, path):
    """Operators copy it from an example; cortex would append its own path to it."""
    [found] = faults(config(f"[[neurons]]\nname = 'a'\nendpoint = 'http://a{path}'\nkind = '{kind}'"))

    assert found[:2] == (3, "neurons[0].endpoint")
    assert "a path of requests" in found[2]


def test_missing_opentelemetry_is_a_fault_that_names_no_package_of_pypi(config, monkeypatch):
    """The package `cortex` of PyPI is another project."""
    monkeypatch.setattr("gateway.config.ledger_settings.find_spec", lambda _name: None)
    [(_, key, _, hint)] = faults(config("[tracing]\notlp_endpoint = 'http://collector:4318'"))
    assert (key, hint) == ("tracing.otlp_endpoint", "`scripts/install otel` in your clone of cortex installs it")
