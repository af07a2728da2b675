"""`max_tokens` that leaves no room: sent once more with the room that is named, or refused in the client's words."""

import json
from dataclasses import replace

import pytest
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, chunked, delta, read_request, with_length

from catalogue.models import Alias
from gateway.config.settings import RetrySettings, Settings

SETTINGS = Settings(retries=RetrySettings(attempts=0))
CHAT = {"model": "helexa/small", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 32000}
REQUESTS = {
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": {"model": "helexa/small", "input": "hi", "max_output_tokens": 32000},
}
ALIAS = Alias.plain("helexa/small", SMALL)
WORDS = "exceed context limit: 13000 + 32000 > 32768"


def refusal_of(asked):
    text = (
        f"'max_tokens' or 'max_completion_tokens' is too large: {asked}. This model's maximum context length is 32768 "
        f"tokens and your request has 13000 input tokens ({asked} > 32768 - 13000)."
    )
    return {"message": text, "type": "BadRequestError", "param": "max_tokens", "code": 400}


class Engine:
    """Has room for an answer of `room` tokens. `how` it refuses: "status", or "event" under a 200."""

    def __init__(self, how="status", room=19768):
        self.how, self.room = how, room
        self.asked = []

    async def __call__(self, stream):
        async with stream:
            while request := await read_request(stream):
                body = json.loads(request.partition(b"\r\n\r\n")[2])
                self.asked.append(body.get("max_tokens") or body.get("max_completion_tokens"))
                await stream.send_all(self.answer(self.asked[-1]))

    def answer(self, asked):
        error = json.dumps({"error": refusal_of(asked)}).encode()
        if asked <= self.room:
            return chunked(delta("Hello"), DONE)
        if self.how == "status":
            return with_length(error, status="400 Bad Request")
        return chunked(b"data: " + error + b"\n\n", DONE)


def gateway_of(nursery, engine, alias=ALIAS, *, is_engine=True):
    traits = {"kind": "openai"} if is_engine else None
    return InMemoryGateway(nursery, {"beast": engine}, SETTINGS, alias=alias, traits=traits)


async def asked(gateway, path):
    answer = await gateway.client().ask({**REQUESTS[path], "stream": True}, path)
    await gateway.idle()
    return answer


@pytest.mark.parametrize("how", ["status", "event"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("is_engine", [True, False])
async def test_translated_request_is_sent_once_more_with_the_room(autojump_clock, nursery, path, how, is_engine):
    """The client never learns of it."""
    engine = Engine(how)
    gateway = gateway_of(nursery, engine, is_engine=is_engine)
    answer = await asked(gateway, path)
    assert (answer.status, engine.asked) == (200, [32000, 19768])
    assert b"Hello" in answer.body
    assert gateway.fleet.nodes["beast"].models[SMALL].breakers_closed


@pytest.mark.parametrize("how", ["status", "event"])
async def test_second_refusal_is_final(autojump_clock, nursery, how):
    """Once more, not again and again."""
    engine = Engine(how, room=100)
    answer = await asked(gateway_of(nursery, engine), "/v1/messages")
    assert (answer.status, engine.asked) == (400, [32000, 19768])
    assert "exceed context limit: 13000 + 19768 > 32768" in answer.error["message"]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
async def test_without_the_clamp_the_client_is_told_in_its_words(autojump_clock, nursery, path):
    """Not that the prompt is too long: it would compact a short conversation again and again."""
    engine = Engine()
    answer = await asked(gateway_of(nursery, engine, replace(ALIAS, clamp_max_tokens=False)), path)
    assert (answer.status, engine.asked) == (400, [32000])
    assert WORDS in answer.error["message"]
    assert "prompt is too long" not in answer.error["message"]
    assert answer.error.get("code") != "context_length_exceeded"


@pytest.mark.parametrize(
    ("clamp", "is_engine", "sent"),
    [
        (None, True, [32000]),
        (False, True, [32000]),
        (True, True, [32000, 19768]),
        (True, False, [32000]),
    ],
)
async def test_body_that_passes_unchanged_is_shortened_only_on_request(autojump_clock, nursery, clamp, is_engine, sent):
    """And only for an engine without a neuron."""
    engine = Engine()
    alias = replace(ALIAS, clamp_max_tokens=clamp)
    answer = await asked(gateway_of(nursery, engine, alias, is_engine=is_engine), "/v1/chat/completions")
    assert (answer.status, engine.asked) == (200 if len(sent) > 1 else 400, sent)
    if len(sent) == 1:
        assert answer.error == refusal_of(32000), "verbatim"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/responses"])
@pytest.mark.parametrize("code", [500, "500", None, 502])
async def test_error_in_a_stream_counts_like_the_same_error_as_a_status(autojump_clock, nursery, path, code):
    """It may be the request: no other request pays for it. Another replica is tried, and if that answers, it counts."""
    error = {"message": "Error rendering prompt with jinja template"} | ({} if code is None else {"code": code})
    broken = chunked(b"event: error\ndata: " + json.dumps({"error": error}).encode() + b"\n\n")

    async def poisoned(stream):
        async with stream:
            while await read_request(stream):
                await stream.send_all(broken)

    gateway = gateway_of(nursery, poisoned)
    for _ in range(10):
        answer = await asked(gateway, path)
        assert (answer.status, "jinja template" in answer.error["message"]) == (int(code or 502), True)
    beast = gateway.fleet.nodes["beast"]
    assert (beast.misses, beast.failing_models, beast.models[SMALL].breakers_closed) == (0, set(), True)
