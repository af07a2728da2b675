"""Token counts as OpenAI, Anthropic and other engines report them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.usage_fields import Usage, read_usage, usage_of_answer


@pytest.mark.parametrize(
    ("value", "usage"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 0}, Usage(1, 0)),
        ({"input_tokens": 1, "output_tokens": 2, "input_tokens_details": {"cached_tokens": 0}}, Usage(1, 2, 0)),
        (
            {"prompt_tokens": 5.0, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 1}},
            Usage(5, 2, None, 1),
        ),
        ({"input_tokens": 4, "cache_read_input_tokens": 90, "cache_creation_input_tokens": 6}, Usage(100, None, 90)),
        ({"input_tokens": 4, "output_tokens": 2, "cache_read_input_tokens": None}, Usage(4, 2)),
        ({"prompt_tokens": 100, "cache_read_input_tokens": 90}, Usage(100)),
        ({"prompt_tokens": 100, "completion_tokens": 2, "cached_tokens": 90}, Usage(100, 2, 90)),  # Kimi
        (  # DeepSeek
            {"prompt_tokens": 100, "prompt_cache_hit_tokens": 90, "prompt_cache_miss_tokens": 10},
            Usage(100, None, 90),
        ),
        ({"prompt_tokens": 100, "cached_tokens": 90, "prompt_tokens_details": None}, Usage(100, None, 90)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 8}, "cached_tokens": 7}, Usage(9, None, 8)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}, "cached_tokens": 7}, Usage(9, None, 7)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 0}}, Usage(9, None, 0)),
        ({"prompt_tokens": 9, "completion_tokens": 5, "reasoning_tokens": 3}, Usage(9, 5, None, 3)),  # SGLang
        ({"total_tokens": 12}, Usage(12)),
        ({"type": "tokens", "input_tokens": 14, "output_tokens": 45, "total_tokens": 59}, Usage(14, 45)),
        ({"type": "duration", "seconds": 9}, Usage()),
        ({"prompt_tokens": "many", "completion_tokens": -1, "prompt_tokens_details": None}, Usage()),
        ({"prompt_tokens": True, "completion_tokens": 1e300}, Usage()),
        ("free", None),
        (None, None),
        ([], None),
    ],
)
def test_usage_is_read_in_every_vocabulary_and_implausible_counts_are_ignored(value, usage):
    """0 is a count; wrong types, negative and huge numbers are unknown."""
    assert read_usage(value) == usage
    assert read_usage({"id": "x", "usage": value}) == usage
    assert usage_of_answer(json.dumps({"id": "x", "usage": value}).encode()) == usage


COUNTS = st.none() | st.integers(-1, 10) | st.sampled_from([True, 1e300, 2.0, "9", 10**15])


@given(
    usage=st.fixed_dictionaries(
        {"prompt_tokens": COUNTS, "completion_tokens": COUNTS, "total_tokens": COUNTS},
        optional={
            "prompt_tokens_details": st.none()
            | st.dictionaries(st.sampled_from(["cached_tokens", "x"]), COUNTS)
            | COUNTS
        },
    )
)
def test_usual_members_are_read_as_among_unusual_ones(usage):
    """The short ways for what most engines send give the same counts as the look at every vocabulary."""
    expected = read_usage({**usage, "unusual": None})
    assert read_usage(usage) == expected
    assert usage_of_answer(json.dumps({"id": "x", "usage": usage}).encode()) == expected
