"""How many tokens a body says it may use."""

import base64
import json
import os
import time

import pytest

from gateway.dialects.json_splice import locate, locate_in_outline
from gateway.dialects.large_bodies.outline import outline_of
from gateway.dialects.token_estimate import TOKENS_PER_IMAGE
from gateway.dialects.token_reservation import _PROMPT_FIELDS, MEDIA_BYTES, TOKEN_PATHS

PROMPT = [{"role": "user", "content": "word " * 700}]


def expected(path="/v1/chat/completions", **body):
    data = json.dumps({"model": "m", **body}).encode()
    prompt, answers = found = locate(data, path).expected_tokens()
    assert locate_in_outline(data, outline_of(data), path).expected_tokens() == (
        pytest.approx(prompt, rel=0.02),
        answers,
    )
    return found


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


def test_a_short_picture_counts_by_its_bytes():
    """So that the estimate has no step where a picture begins to count as one."""
    for length in (MEDIA_BYTES - 200, MEDIA_BYTES + 200):
        url = "data:image/png;base64," + "A" * length
        prompt, _ = expected(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
        assert prompt == pytest.approx(TOKENS_PER_IMAGE, rel=0.1)


@pytest.mark.parametrize("text", ["word" * 20_000, "1,2,3," * 20_000, "{}();" * 20_000])
def test_long_text_without_spaces_is_no_picture(text):
    prompt, _ = expected(messages=[{"role": "user", "content": text}])
    assert prompt == pytest.approx(len(text) / 3.5, rel=0.02)


@pytest.mark.parametrize(
    "piece",
    [
        "A" * 1023 + '"',
        "A" * (MEDIA_BYTES - 1) + '"',
        "A" * MEDIA_BYTES + '"',
        '"' + " " * (MEDIA_BYTES - 1),
        "\\" + "A" * MEDIA_BYTES,
        "A" * MEDIA_BYTES,
        " base64 ",
    ],
)
def test_the_search_for_pictures_is_linear(piece):
    """A client may send any body. Once, a megabyte of short runs of base64 took a second of the event loop."""

    def seconds(length):
        data = json.dumps({"model": "m", "messages": "base64" + piece * (length // len(piece))}).encode()
        members = locate(data, "/v1/chat/completions")
        began = time.process_time()
        members.expected_tokens()
        return time.process_time() - began

    short, long = (min(seconds(length) for _ in range(3)) for length in (1_000_000, 8_000_000))
    assert long < 8 * 4 * max(short, 0.001)


def test_without_a_prompt_no_tokens_are_expected():
    assert expected("/v1/images/generations", prompt="A cat") == (0, None)
    assert expected(user="x" * 5000) == (0, None)
    assert set(TOKEN_PATHS) == set(_PROMPT_FIELDS)
