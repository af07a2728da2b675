"""catalogue.nearest: the names that a request may have meant."""

import pytest

from catalogue.nearest import did_you_mean, nearest_names

KNOWN = ["helexa/small", "helexa/large", "Qwen/Qwen3-8B", "Qwen/Qwen3-14B", "gpt-4o"]


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("Qwen/Qwen3-88B", "Qwen/Qwen3-8B"),
        ("qwen/qwen3-8b", "Qwen/Qwen3-8B"),
        ("Qwen3-14B", "Qwen/Qwen3-14B"),
        ("other/qwen3-14b", "Qwen/Qwen3-14B"),
        ("helexa/lagre", "helexa/large"),
        ("small", "helexa/small"),
        ("GPT4o", "gpt-4o"),
    ],
)
def test_similar_name_is_found(name, first):
    """Other case, a missing prefix, a typing mistake."""
    assert nearest_names(name, KNOWN)[0] == first


@pytest.mark.parametrize("name", ["llama", "", "x", "\0" * 1000])
def test_nothing_is_suggested_for_a_name_that_is_not_similar(name):
    """A wrong suggestion is worse than none."""
    assert did_you_mean(name, KNOWN) == ""


def test_text_names_at_most_two():
    """The most similar first."""
    assert did_you_mean("Qwen/Qwen3-88B", KNOWN) == "; did you mean 'Qwen/Qwen3-8B' or 'Qwen/Qwen3-14B'?"
    assert did_you_mean("gpt-4", KNOWN) == "; did you mean 'gpt-4o'?"
    assert did_you_mean("a", []) == ""
