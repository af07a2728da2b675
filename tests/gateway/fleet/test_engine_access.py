"""EngineAccess: an engine's model names, paths and API key."""

from dataclasses import replace

import pytest

from gateway.config.settings import NeuronSettings
from gateway.fleet.engine_access import EngineAccess, backend_of
from gateway.fleet.reports import ModelReport

CHAT = b"/v1/chat/completions?beta=true"


def access(**keys):
    return EngineAccess.of(NeuronSettings("a", "http://a", "openai", **keys))


def test_neuron_has_no_access():
    """Requests to a neuron are sent as they are."""
    assert EngineAccess.of(NeuronSettings("a", "http://a")) is None


@pytest.mark.parametrize(
    ("base_path", "path", "expected"),
    [
        ("/v1", CHAT, CHAT),
        ("", CHAT, b"/chat/completions?beta=true"),
        ("/api/v3", CHAT, b"/api/v3/chat/completions?beta=true"),
        ("/api/v3", b"/v1", b"/v1"),
        ("/api/v3", b"/v10/x", b"/v10/x"),
        ("/api/v3", b"/%761/x", b"/%761/x"),
    ],
)
def test_base_path_replaces_v1(base_path, path, expected):
    """Only a first path segment of exactly `/v1` is replaced."""
    assert access(base_path=base_path).path_at_engine(path) == expected


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize("asked", [b"/v1/tokenize", b"/tokenize"])
def test_tokenizer_of_these_engines_is_at_the_root(engine, asked):
    """These engines serve the tokenizer at the root, whatever the base path and the client's spelling."""
    for base_path in ("/v1", "/api/v3", ""):
        engines = access(engine=engine, base_path=base_path)
        assert engines.path_at_engine(asked) == b"/tokenize"
        assert engines.path_at_engine(asked.replace(b"token", b"detoken") + b"?x=1") == b"/detokenize?x=1"
        assert engines.path_at_engine(b"/v1/models") == base_path.encode() + b"/models"


def test_tokenizer_path_of_other_engines_is_unchanged():
    """For other engines the client's path is kept."""
    assert access(engine="tabbyapi").path_at_engine(b"/v1/tokenize") == b"/v1/tokenize"
    assert access().path_at_engine(b"/tokenize") == b"/tokenize"


def test_serves_maps_our_id_and_leaves_others():
    """An id that `serves` does not map is sent as it is."""
    mapped = access(serves={"Qwen/Qwen3-8B": "qwen3:8b"})

    assert mapped.model_name("Qwen/Qwen3-8B") == "qwen3:8b"
    assert mapped.model_name("llama3.2:latest") == "llama3.2:latest"


def test_api_key_is_added_to_the_header_lines():
    """If the engine has one."""
    lines = b"accept: */*\r\n"

    assert access(api_key="k").with_credentials(lines) == b"accept: */*\r\nauthorization: Bearer k\r\n"
    assert access().with_credentials(lines) == lines


def test_key_is_in_no_repr():
    """Reprs appear in logs."""
    settings = NeuronSettings("a", "http://a", "openai", api_key="hunter2")

    assert "hunter2" not in repr(settings) + repr(EngineAccess.of(settings))


# What a neuron reports of a model's engine ............................................................................


NEURON = NeuronSettings("a", "http://a")


def test_plain_neuron_needs_no_access():
    assert EngineAccess.of(NEURON) is None
    assert EngineAccess.of(NEURON, ModelReport("m", "loaded", engine="transformers", serves="m")) is None


def test_token_of_a_neuron_goes_with_its_requests():
    access = EngineAccess.of(replace(NEURON, token="t"))
    assert access.with_credentials(b"") == b"authorization: Bearer t\r\n"
    assert access.path_at_engine(b"/v1/chat/completions") == b"/v1/chat/completions"
    assert access.model_name("m") == "m"


def test_own_name_and_paths_of_a_reported_engine():
    access = EngineAccess.of(NEURON, ModelReport("m", "loaded", engine="vllm", serves="theirs"))
    assert (access.model_name("m"), access.model_name("other")) == ("theirs", "other")
    assert access.path_at_engine(b"/v1/tokenize") == b"/tokenize"


@pytest.mark.parametrize(
    ("keys", "engine", "dialects", "expected"),
    [
        ({}, "vllm", ("openai", "anthropic", "responses", "klingon"), {"openai", "anthropic", "responses"}),
        ({}, "llamacpp", ("openai", "anthropic", "responses"), {"openai"}),
        ({}, None, None, {"openai"}),
        ({"dialects": ("openai", "responses")}, "vllm", ("openai", "anthropic"), {"openai", "responses"}),
    ],
)
def test_dialects_of_a_reported_engine(keys, engine, dialects, expected):
    """Those of the settings win; what SDKs cannot read is translated."""
    assert backend_of(replace(NEURON, **keys), engine, dialects).dialects == expected


@pytest.mark.parametrize(
    ("engine", "ask_usage", "tokenizer", "thinking"),
    [("vllm", True, True, "chat_template_kwargs"), ("transformers", False, False, "none"), (None, False, False, None)],
)
def test_traits_of_a_reported_engine(engine, ask_usage, tokenizer, thinking):
    backend = backend_of(NEURON, engine)
    assert (backend.ask_usage, backend.tokenizer) == (ask_usage, tokenizer)
    assert thinking is None or backend.thinking_switch == thinking
    assert not backend_of(replace(NEURON, ask_usage=False), engine).ask_usage
