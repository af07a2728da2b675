"""The bench's questions: enough of each kind, right answers pass, other answers do not."""

import pytest
from fakes.bench_answers import ANSWERS

from gateway.cli.bench.code_check import why_code_fails
from gateway.cli.bench.questions import KINDS, PROBE, Reply, questions

QUESTIONS = {question.id: question for question in questions()}


def reply_of(answer):
    return Reply(answer) if isinstance(answer, str) else Reply("", (answer,))


def test_there_are_at_least_forty_questions_over_six_kinds():
    """The same number of each kind, all different, and a right answer to each in this test."""
    counts = {kind: sum(question.kind == kind for question in QUESTIONS.values()) for kind in KINDS}
    assert counts == dict.fromkeys(KINDS, 7)
    assert len({question.prompt for question in QUESTIONS.values()}) == 42
    assert ANSWERS.keys() == QUESTIONS.keys()
    assert {question.kind for question in questions(1)} == set(KINDS)


@pytest.mark.parametrize("name", ANSWERS)
def test_right_answer_passes(name):
    assert QUESTIONS[name].check(reply_of(ANSWERS[name])) is None


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_to_another_question_does_not(name):
    """Nor does an empty one; the reason is in words."""
    kinds = {question.id: question.kind for question in QUESTIONS.values()}
    other = next(other for other in ANSWERS if kinds[other] == kinds[name] and other not in {name, "umbrella"})
    for reply in (reply_of(ANSWERS[other]), Reply(), Reply("able amid arch 7 atom")):
        assert QUESTIONS[name].check(reply)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("person", '{"name": "Ada Lovelace", "age": "36"}', 'age is "36"'),
        ("person", '{"name": "Ada Lovelace"}', "its keys are name"),
        ("flags", '{"door_open": 1, "light_on": 0}', "door_open is 1"),
        ("colours", '{"colours": ["white", "red", "blue"]}', "colours is"),
        ("product", "391, or about 400", "the answer ends with 400"),
        ("bones", "2067", "the answer does not contain it"),
    ],
)
def test_reason_says_what_is_wrong(name, text, reason):
    assert reason in QUESTIONS[name].check(Reply(text))


def test_tool_must_be_the_right_one_once():
    call = ("get_weather", {"city": "Lisbon"})
    check = QUESTIONS["weather"].check
    assert check(Reply("", (call, call))) == "it called 2 tools"
    assert check(Reply("", (("set_timer", {"minutes": 1}),))) == "it called set_timer"
    assert QUESTIONS["no tool"].check(Reply("cold", (call,))) == "it called get_weather"


def test_contexts_begin_differently_in_each_run():
    """So no prefix cache of an earlier run answers; the fact is at its place."""
    question = QUESTIONS["start"]
    one, other = question.full_prompt("1234 small"), question.full_prompt("5678 small")
    assert one[:20] != other[:20]
    assert one[30:] == other[30:]
    assert 0 < one.index("4417") < len(one) / 10
    assert len(one.split()) > 500
    assert PROBE.full_prompt("1234") == PROBE.prompt


# Code that a model wrote ..............................................................................................


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os\ndef f(x): return x", "it uses Import"),
        ("def f(x):\n    from subprocess import run\n    return x", "it uses ImportFrom"),
        ("def f(x): return open('/etc/passwd')", "it uses open"),
        ("def f(x): return ().__class__.__base__", "it uses .__"),
        ("def f(x): return getattr(x, 'real')", "it uses getattr"),
        ("def f(x): return eval('1')", "it uses eval"),
        ("def f(x): return __builtins__", "it uses __builtins__"),
        ("def f(x): return '{0.__class__}'.format(x)", "which the test does not allow"),
        ("def f(x): return (y for y in x).gi_frame", "it uses .gi_frame"),
        ("def f(x): return f'{x!r:{\"__\"}}'", "__ in a string"),
        ("class A: pass\ndef f(x): return x", "it uses ClassDef"),
        ("def g(x): return x", "it does not define f"),
        ("I cannot do that.", "it is not Python"),
        ("x" * 5000, "it has more than 4000 characters"),
        ("def f(x): return x + 1", "f(1) returns 2"),
        ("def f(x): return x / 0", "it fails: ZeroDivisionError"),
        ("def f(x): return x == 1", "f(1) returns True"),
        ("def f(x):\n    while True: pass", "it does not end"),
        ("def f(x): return [0] * 10**10", "it fails: MemoryError"),
        ("def f(x): return f(x)", "it fails: RecursionError"),
    ],
)
def test_code_that_is_not_run_or_not_right(code, reason):
    """Nothing that reaches beyond the function runs at all; the rest runs in a cage."""
    assert reason in why_code_fails(code, "f", [((1,), 1)])
