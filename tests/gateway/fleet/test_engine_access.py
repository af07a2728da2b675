"""How an engine is addressed: names, paths, keys."""

import pytest

from gateway.config.settings import NeuronSettings
from gateway.fleet.engine_access import Access

CHAT = b"/v1/chat/completions?beta=true"


def access(**keys):
    return Access.of(NeuronSettings("a", "http://a", "openai", **keys))


def test_neuron_has_no_access():
    """A neuron is spoken to as ever, and its requests pay nothing."""
    assert Access.of(NeuronSettings("a", "http://a")) is None


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
def test_base_path_stands_where_v1_stood(base_path, path, expected):
    """Nothing but the first segment changes, and only if it is ours."""
    assert access(base_path=base_path).path_of(path) == expected


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp"])
@pytest.mark.parametrize("asked", [b"/v1/tokenize", b"/tokenize"])
def test_tokenizer_of_these_engines_is_at_the_root(engine, asked):
    """Whatever their base path, and however a client spells it."""
    for base_path in ("/v1", "/api/v3", ""):
        engines = access(engine=engine, base_path=base_path)
        assert engines.path_of(asked) == b"/tokenize"
        assert engines.path_of(asked.replace(b"token", b"detoken") + b"?x=1") == b"/detokenize?x=1"
        assert engines.path_of(b"/v1/models") == base_path.encode() + b"/models"


def test_tokenizer_of_others_is_where_the_client_says():
    """Nobody knows better."""
    assert access(engine="tabbyapi").path_of(b"/v1/tokenize") == b"/v1/tokenize"
    assert access().path_of(b"/tokenize") == b"/tokenize"


def test_serves_maps_our_id_and_leaves_others():
    """An id nobody mapped is the engine's own."""
    mapped = access(serves={"Qwen/Qwen3-8B": "qwen3:8b"})

    assert mapped.name_of("Qwen/Qwen3-8B") == "qwen3:8b"
    assert mapped.name_of("llama3.2:latest") == "llama3.2:latest"


def test_key_is_added_and_the_list_of_headers_not_changed():
    """A retry elsewhere starts from the same list: one engine's key must not get to another."""
    headers = [(b"accept", b"*/*")]

    assert access(api_key="k").signed(headers) == [(b"accept", b"*/*"), (b"authorization", b"Bearer k")]
    assert headers == [(b"accept", b"*/*")]
    assert access().signed(headers) is headers


def test_key_is_in_no_repr():
    """Reprs end up in logs."""
    settings = NeuronSettings("a", "http://a", "openai", api_key="hunter2")

    assert "hunter2" not in repr(settings) + repr(Access.of(settings))
