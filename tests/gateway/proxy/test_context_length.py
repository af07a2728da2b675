"""Prompts that cannot fit: how they are recognized, and which limit counts."""

import json

import pytest
import trio
from fakes.fleets import a_catalogue, a_fleet, a_model, a_profile, answers

from catalogue.models import Limit
from gateway import errors
from gateway.dialects.json_splice import locate
from gateway.proxy.context_length import prompt_limit, refuse_if_too_long
from gateway.proxy.request import InferenceRequest

CHAT = b"/v1/chat/completions"
LIMIT = 4_000
CATALOGUE = a_catalogue(a_profile("m", limit=Limit(context=LIMIT)))
FITS = "prose " * LIMIT
TOO_LONG = FITS + "more"


def asked(path=CHAT, **body):
    encoded = json.dumps({"model": "m", **body}).encode()
    return InferenceRequest(path, [], encoded, locate(encoded), "req-1")


def user(content):
    return [{"role": "user", "content": content}]


def refuse(request, catalogue=CATALOGUE, fleet=None):
    trio.run(refuse_if_too_long, request, "m", catalogue, fleet or a_fleet("a"))


# Prompts that are refused...


def test_prompt_with_more_words_than_tokens_is_refused():
    """The message has the wording that clients parse, and the numbers."""
    with pytest.raises(errors.ContextLengthExceeded, match=r"maximum context length is 4000 tokens") as refused:
        refuse(asked(messages=user(TOO_LONG)))

    assert (refused.value.code, refused.value.status, refused.value.param) == (
        "context_length_exceeded",
        400,
        "messages",
    )


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (b"/v1/completions", {"prompt": TOO_LONG}, "prompt"),
        (b"/v1/messages?beta=true", {"system": [{"text": FITS}], "messages": user("hi")}, "messages"),
        (b"/v1/responses", {"input": TOO_LONG}, "input"),
        (b"/v1/responses", {"instructions": FITS, "input": [{"type": "message", **user("hi")[0]}]}, "input"),
        (CHAT, {"messages": user([{"type": "text", "text": FITS}, {"type": "text", "text": "more"}])}, "messages"),
    ],
)
def test_prompt_is_found_in_every_dialect(path, body, param):
    """Messages, content parts, instructions, and the plain prompt."""
    with pytest.raises(errors.ContextLengthExceeded) as refused:
        refuse(asked(path, **body))

    assert refused.value.param == param


MAY_FIT = {
    "exactly": asked(messages=user(FITS)),
    "no spaces": asked(messages=user("prose" * LIMIT * 3)),
    "no words": asked(messages=user("文字" * LIMIT * 3)),
    "picture": asked(messages=user([{"type": "image_url", "image_url": {"url": "data:," + "A" * 100 * LIMIT}}])),
    "no prompt": asked(messages=user("hi"), metadata={"a": TOO_LONG}),
    "thoughts": asked(messages=[{"role": "assistant", "content": "a", "reasoning_content": TOO_LONG}]),
    "cut by the engine": asked(messages=user(TOO_LONG), truncate_prompt_tokens=100),
    "cut by the neuron": asked(b"/v1/responses", input=TOO_LONG, truncation="auto"),
    "many prompts": asked(b"/v1/embeddings", input=[FITS, FITS]),
    "only counted": asked(b"/v1/messages/count_tokens", messages=user(TOO_LONG)),
    "not worth a look": asked(messages=user("a " * (LIMIT + LIMIT // 2))),
}


@pytest.mark.parametrize("what", MAY_FIT)
def test_prompt_that_may_fit_is_passed_on(what):
    """Other fields, truncated prompts, pictures, and small bodies."""
    refuse(MAY_FIT[what])


@pytest.mark.parametrize("prompt", [[FITS, FITS], [1, 2]])
def test_several_prompts_are_counted_separately(prompt):
    """Each has the whole limit; token ids are not words."""
    refuse(asked(b"/v1/completions", prompt=prompt))


def test_nothing_is_refused_without_a_known_limit():
    """Not even a whole book."""
    refuse(asked(messages=user(TOO_LONG * 10)), a_catalogue(a_profile("m")))


def test_body_that_cannot_be_decoded_is_passed_on():
    """A lone surrogate, or a number beyond a double."""
    body = b'{"model":"m","x":1e400,"messages":[{"role":"user","content":"\\ud83d %b"}]}' % TOO_LONG.encode()

    refuse(InferenceRequest(CHAT, [], body, locate(body), "req-1"))


# The limit...


@pytest.mark.parametrize(
    ("profile", "reported", "expected"),
    [
        (None, [], None),
        (Limit(context=100), [], 100),
        (Limit(context=100, input=80), [], 80),
        (Limit(context=100, output=10), [(Limit(context=50), None)], 100),
        (None, [(Limit(context=50), None)], 50),
        (None, [(Limit(context=50, input=40), None)], 40),
        (None, [(Limit(context=50), None), (Limit(context=70), None)], 70),
        (None, [(Limit(context=50), None), (None, None)], None),
        (None, [(Limit(), None)], None),
        (None, [(None, 30)], 30),
        (None, [(Limit(context=50), 30), (Limit(context=40), None)], 40),
        (Limit(context=100), [(None, 30)], 30),
        (Limit(context=100), [(None, 30), (None, None)], 100),
        (Limit(context=100), [(None, 300)], 100),
    ],
)
def test_limit_is_the_largest_of_the_replicas(profile, reported, expected):
    """The catalogue's limit overrides the neurons'; an unknown limit is no limit."""
    fleet = a_fleet(*(f"n{index}" for index, _ in enumerate(reported)))
    for index, (limit, max_prompt_tokens) in enumerate(reported):
        answers(fleet, f"n{index}", a_model("m", limit=limit), max_prompt_tokens=max_prompt_tokens)
    catalogue = a_catalogue() if profile is None else a_catalogue(a_profile("m", limit=profile))

    assert prompt_limit("m", catalogue, fleet) == expected


def test_limit_of_a_model_with_a_source_is_found():
    """Neurons list such a model under another name."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("ollama:m", limit=Limit(context=50)))

    assert prompt_limit("m", a_catalogue(a_profile("m", source="ollama")), fleet) == 50


def test_prompt_with_too_many_values_is_the_neurons_to_judge():
    """To decode it would take a second and a gigabyte."""
    refuse(asked(messages=user(TOO_LONG), x=[" "] * 300_000))
