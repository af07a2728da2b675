"""How many tokens a body says it may use."""

import base64
import json
import os

import pytest

from gateway.dialects.large_bodies.outline import Outline, outline_of
from gateway.dialects.token_estimate import TOKENS_PER_IMAGE
from gateway.dialects.token_reservation import _PROMPT_FIELDS, TOKEN_PATHS, expected_tokens

PROMPT = [{"role": "user", "content": "word " * 700}]


def expected(path="/v1/chat/completions", **body):
    return expected_tokens(path, outline_of(json.dumps({"model": "m", **body}).encode()))


@pytest.mark.parametrize(
    ("body", "answers"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 8, "max_tokens": 7}, 8),
        ({"max_output_tokens": 9}, 9),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 7, "n": 10**9}, 7 * 128),
        ({"max_tokens": None, "max_completion_tokens": "8", "n": True}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 1.5}, None),
    ],
)
def test_the_answers_limit_has_many_names(body, answers):
    assert expected(**body)[1] == answers


@pytest.mark.parametrize(("path", "field"), [(path, name) for path, names in _PROMPT_FIELDS.items() for name in names])
def test_the_prompt_is_estimated_by_its_bytes_wherever_it_is(path, field):
    prompt, _ = expected(path, **{field: PROMPT}, user="x" * 5000)
    assert prompt == pytest.approx(3530 / 3.5, rel=0.02)


@pytest.mark.parametrize(
    "part",
    [
        lambda data: {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}},
        lambda data: {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}},
        lambda data: {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
    ],
)
def test_pictures_and_sounds_do_not_count_by_their_bytes(part):
    """A megabyte would be 400,000 tokens, and no limit would ever let it pass."""
    data = base64.b64encode(os.urandom(1_000_000)).decode()
    messages = [{"role": "user", "content": [part(data), part(data), {"type": "text", "text": "word " * 700}]}]
    assert expected(messages=messages)[0] == pytest.approx(2 * TOKENS_PER_IMAGE + 1000, rel=0.1)


@pytest.mark.parametrize("body", [b"[]", b'{"max_tokens":', b"[" * 100_000, b'{"messages":"\xff"}'])
def test_a_body_that_cannot_be_read_is_estimated_by_its_length(body):
    for path in TOKEN_PATHS:
        prompt, answers = expected_tokens(path, Outline(body))
        assert (prompt >= 1, answers) == (True, None)
