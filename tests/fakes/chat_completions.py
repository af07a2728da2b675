"""Chat completions as engines send them: chunks, whole answers, and a strategy that generates both for one answer."""

import json
from dataclasses import dataclass

from hypothesis import strategies as st

USAGE = {
    "prompt_tokens": 40,
    "completion_tokens": 7,
    "total_tokens": 47,
    "prompt_tokens_details": {"cached_tokens": 30},
    "completion_tokens_details": {"reasoning_tokens": 3},
}


def chunk(delta=None, finish_reason=None, *, choices=None, **more):
    """The data of one event."""
    if choices is None:
        choices = [{"index": 0, "delta": delta or {}, "logprobs": None, "finish_reason": finish_reason}]
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "lab/m"}
    return json.dumps({**head, "choices": choices, **more}).encode()


def whole(message, finish_reason="stop", usage=USAGE, **choice):
    """The body of an answer without a stream."""
    choices = [{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason, **choice}]
    head = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "lab/m"}
    return json.dumps({**head, "choices": choices, "usage": usage}).encode()


def call(index=0, id_=None, name=None, arguments=None):
    """A delta with part of one tool call."""
    entry = {"index": index}
    if id_ is not None:
        entry |= {"id": id_, "type": "function"}
    function = {key: value for key, value in (("name", name), ("arguments", arguments)) if value is not None}
    return {"tool_calls": [{**entry, "function": function}]}


@dataclass
class Answer:
    """One answer: its content, and the events in which an engine sent it."""

    text: str
    thought: str
    calls: list  # (name, arguments as JSON), by index
    finish_reason: str | None
    usage: dict | None
    datas: list  # of the events
    terminated: bool  # `[DONE]` is among them


words = st.text(st.characters(codec="utf-8"), max_size=8)
objects = st.dictionaries(
    words, st.recursive(st.none() | st.booleans() | st.integers(-99, 99) | words, st.lists), max_size=3
)


@st.composite
def answers(draw, *, finishes=True):
    """Content, reasoning and calls in any interleaving, with noise, usage anywhere, and any end."""
    calls = draw(st.lists(st.tuples(st.sampled_from(["read", "write"]), objects), max_size=3))
    threads = [[{"content": piece} for piece in draw(st.lists(words, max_size=4))]]
    threads.append([{draw(thought_keys): piece} for piece in draw(st.lists(words, max_size=4))])
    threads += [draw(_call_deltas(index, name, arguments)) for index, (name, arguments) in enumerate(calls)]
    deltas = draw(_interleaved(threads))
    text = "".join(delta.get("content", "") for delta in deltas)
    thought = "".join(delta.get(key, "") for delta in deltas for key in ("reasoning_content", "reasoning"))
    datas = [chunk({"role": "assistant", "content": ""}), *map(chunk, deltas)]
    for noise in draw(st.lists(st.sampled_from(NOISE), max_size=3)):
        datas.insert(draw(st.integers(0, len(datas))), noise)
    finish_reason = draw(st.sampled_from(["stop", "length", "tool_calls"])) if finishes or draw(st.booleans()) else None
    end, usage = draw(_ends(finish_reason))
    terminated = draw(st.booleans()) if finishes else False
    done = [b"[DONE]"] if terminated else []
    return Answer(
        text, thought, [(n, json.dumps(a)) for n, a in calls], finish_reason, usage, datas + end + done, terminated
    )


thought_keys = st.sampled_from(["reasoning_content", "reasoning"])
NOISE = [
    chunk(choices=[]),
    chunk({}),
    chunk({"content": None, "reasoning_content": None, "tool_calls": None}),
    chunk(choices=[{"index": 1, "delta": {"content": "another choice"}}]),
    chunk({}, usage={"prompt_tokens": 40, "completion_tokens": 1}),  # vLLM's continuous usage
    chunk({}, usage=None),
    b"",
]


@st.composite
def _call_deltas(draw, index, name, arguments):
    """One call, whole or in pieces cut anywhere; one without arguments sometimes has no `arguments`."""
    text = json.dumps(arguments)
    if not arguments and draw(st.booleans()):
        return [call(index, f"call_{index}", name, draw(st.sampled_from(["", None])))]
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=4)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    return [call(index, f"call_{index}", name, pieces[0]), *(call(index, arguments=piece) for piece in pieces[1:])]


@st.composite
def _interleaved(draw, threads):
    """Any order that keeps each thread's own; a call begins after the earlier calls, as engines number them."""
    threads, merged = [list(thread) for thread in threads], []
    lengths = [len(thread) for thread in threads]
    while any(threads):
        begun = [len(thread) < length for thread, length in zip(threads, lengths, strict=True)]
        ready = [i for i, thread in enumerate(threads) if thread and (i <= FIRST_CALL or begun[i - 1])]
        merged.append(threads[draw(st.sampled_from(ready))].pop(0))
    return merged


FIRST_CALL = 2  # thread 0 is the text, 1 the thoughts


@st.composite
def _ends(draw, finish_reason):
    """The finish chunk, and usage before, in or after it, or not at all."""
    if finish_reason is None:
        return [], None
    where = draw(st.sampled_from(["nowhere", "before", "within", "after", "after, with a choice"]))
    finish = chunk({}, finish_reason, **({"usage": USAGE} if where == "within" else {}))
    extra = {"before": [chunk({}, usage=USAGE)], "after": [chunk(choices=[], usage=USAGE)]}
    extra["after, with a choice"] = [chunk({}, usage=USAGE)]
    more = extra.get(where, [])
    return ([*more, finish] if where == "before" else [finish, *more]), (None if where == "nowhere" else USAGE)
