"""Large bodies are decoded outside the event loop, both ways; small ones in it."""

import json
import threading

import pytest
from fakes.chat_completions import chunk, whole
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, answering, chunked, with_length

from catalogue.models import Limit
from gateway.config.settings import DeadlineSettings, RetrySettings, Settings
from gateway.dialects import chat_translator, openai
from gateway.dialects.anthropic import dialect as anthropic
from gateway.dialects.responses import dialect as responses
from gateway.fleet.reports import ModelReport, NodeReport
from gateway.proxy import context_length, request

SETTINGS = Settings(retries=RetrySettings(attempts=0), deadlines=DeadlineSettings(upload_seconds=1e6))
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
TURNS = [{"role": "assistant" if at % 2 else "user", "content": "hi"} for at in range(8_000)]
LARGE = {
    CHAT: {"messages": TURNS},
    MESSAGES: {"messages": TURNS, "max_tokens": 9},
    RESPONSES: {"input": TURNS},
    "/v1/messages/count_tokens": {"messages": TURNS},
}
SHORT = {
    CHAT: {"messages": TURNS[:9]},
    MESSAGES: {"messages": TURNS[:9], "max_tokens": 9},
    RESPONSES: {"input": TURNS[:9]},
    "/v1/messages/count_tokens": {"messages": TURNS[:9]},
}
STEPS = {
    "locate": (request, "locate"),
    "translate messages": (anthropic, "translate"),
    "translate responses": (responses, "translate"),
    "splice": (openai, "splice"),
    "count words": (context_length, "count_words"),
    "whole": (chat_translator.ChatTranslation, "whole"),
    "stream of": (chat_translator.ChatTranslation, "stream_of"),
}


@pytest.fixture
def threads(monkeypatch):
    """The names of the steps that ran in the event loop's thread, and of those that ran in another one."""
    ran = {"loop": set(), "thread": set()}

    def spied(name, function):
        def spy(*args, **kwargs):
            is_loop = threading.current_thread() is threading.main_thread()
            ran["loop" if is_loop else "thread"].add(name)
            return function(*args, **kwargs)

        return spy

    for name, (owner, attribute) in STEPS.items():
        monkeypatch.setattr(owner, attribute, spied(name, getattr(owner, attribute)))
    return ran


async def asked(nursery, body, path, answer, *, stream=False, traits=None, limit=None):
    neurons = {"beast": answering(answer, then_close=True)}
    gateway = InMemoryGateway(nursery, neurons, SETTINGS, traits=traits)
    report = ModelReport(SMALL, "loaded", url="http://beast:13131", limit=limit)
    gateway.fleet.answered("beast", NodeReport((report,), devices=()))
    answer = await gateway.client().ask({"model": "helexa/small", **body, "stream": stream}, path)
    await gateway.idle()
    return answer


SHORT_ANSWER = with_length(whole({"content": "x"}))
CALLS = [{"id": f"c{at}", "type": "function", "function": {"name": "f", "arguments": "{}"}} for at in range(5_000)]
LONG_ANSWER = with_length(whole({"content": "x", "tool_calls": CALLS}))


@pytest.mark.parametrize("path", LARGE)
async def test_large_request_is_read_in_a_thread(nursery, threads, path):
    """Whatever the path does with it."""
    answer = await asked(nursery, LARGE[path], path, SHORT_ANSWER)

    assert answer.status == 200
    assert threads["thread"]
    assert threads["loop"] <= {"whole"}


@pytest.mark.parametrize("path", SHORT)
async def test_short_request_is_read_in_the_event_loop(autojump_clock, nursery, threads, path):
    """A thread would cost more than it spares."""
    answer = await asked(nursery, SHORT[path], path, SHORT_ANSWER)

    assert answer.status == 200
    assert threads["loop"]
    assert not threads["thread"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_long_answer_is_translated_in_a_thread(nursery, threads, path, stream):
    """Whole, and as a stream that it is converted to."""
    answer = await asked(nursery, SHORT[path], path, LONG_ANSWER, stream=stream)

    assert answer.status == 200
    assert b"c4999" in answer.body
    assert threads["thread"] == {"stream of" if stream else "whole"}


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
async def test_long_answer_that_is_put_together_is_translated_in_a_thread(nursery, threads, path):
    """The client asked for no stream."""
    events = [b"data: %b\n\n" % chunk({"tool_calls": [{**call, "index": at}]}) for at, call in enumerate(CALLS)]
    end = b"data: %b\n\n" % chunk({}, "tool_calls")
    answer = await asked(nursery, SHORT[path], path, chunked(*events, end, DONE), traits={"kind": "openai"})

    assert answer.status == 200
    assert b"c4999" in answer.body
    assert threads["thread"] == {"whole"}


async def test_long_prompt_is_counted_in_a_thread(nursery, threads):
    """And refused."""
    body = {"messages": [{"role": "user", "content": "a, " * 400_000}]}
    answer = await asked(nursery, body, CHAT, SHORT_ANSWER, limit=Limit(context=4_000))

    assert answer.error["code"] == "context_length_exceeded"
    assert "count words" in threads["thread"]


TOO_LARGE = {
    "values": b'{"choices":[{"message":{"content":[' + b"{}," * 250_000 + b'{}]},"finish_reason":"stop"}]}',
    "text": b'{"choices":[{"message":{"content":"' + b"\\n" * 5 * 1024**2 + b'"},"finish_reason":"stop"}]}',
}


@pytest.mark.parametrize("path", [MESSAGES, RESPONSES])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", TOO_LARGE)
async def test_answer_that_is_too_large_to_be_translated_is_a_502(nursery, path, stream, name):
    """Instead of a gateway that answers no client."""
    for reply in (with_length(TOO_LARGE[name]), chunked(b"data: %b\n\n" % TOO_LARGE[name], DONE)):
        answer = await asked(nursery, SHORT[path], path, reply, stream=stream)

        assert answer.status == 502
        assert "more than" in answer.error["message"] or "too large" in answer.error["message"]


async def test_same_answer_passes_unread(nursery):
    """Nothing is decoded that goes through as it is."""
    answer = await asked(nursery, SHORT[CHAT], CHAT, with_length(TOO_LARGE["values"]))

    assert (answer.status, answer.body) == (200, TOO_LARGE["values"])


async def test_large_request_that_cannot_be_translated_is_refused(nursery, threads):
    """The error comes out of the thread as it is."""
    turns = [*TURNS, {"role": "user", "content": [{"type": "container_upload"}]}]
    answer = await asked(nursery, {**LARGE[MESSAGES], "messages": turns}, MESSAGES, SHORT_ANSWER)

    assert answer.status == 400
    assert "messages.8000.content.0" in json.loads(answer.body)["error"]["message"]
    assert "translate messages" in threads["thread"]
