"""Limits and ledger on the request path, in memory and in own time: what each request reserves, settles and enters."""

import random
import time

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.known_keys import KnownKeys
from fakes.scripted import answering, with_length
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Cost, Limit, ModelProfile
from gateway.access.keys.key import Key
from gateway.access.limits.limit import Budget, Limits
from gateway.access.limits.limiter import Limiter
from gateway.fleet.reports import DeviceReport, ModelReport, NodeReport
from neuron.simulated.faults import OddUsage
from neuron.simulated.fleet import neuron

PROFILE = ModelProfile(SMALL, "vllm", cost=Cost(input=1.0, output=2.0), limit=Limit(output=4000))
MESSAGES = {"max_tokens": 100, "messages": [{"role": "user", "content": "What is the capital of Georgia?"}]}


@pytest.fixture
def limiter():
    return Limiter()


@pytest.fixture
def beast():
    return neuron("beast", [24576], [SMALL])


@pytest.fixture
def open_gateway(nursery, beast, limiter):
    """Makes a gateway with one key, `alice`, that has these limits."""

    def make(*, mode="keys", neurons=None, **limits):
        keys = KnownKeys(Key("k1", "alice", limits=Limits(**limits)), mode=mode)
        gateway = InMemoryGateway(
            nursery, neurons or {"beast": beast}, models=(PROFILE,), limiter=limiter, access=keys.access
        )
        gateway.alice = (keys.bearer("alice"),)
        return gateway

    return make


async def ask(gateway, *args, **more):
    answer = await gateway.client().ask(*args, headers=gateway.alice, **more)
    await wait_all_tasks_blocked()  # the client may have the end before the gateway has closed the account
    return answer


async def test_a_row_says_what_the_request_was_and_used(autojump_clock, open_gateway):
    gateway = open_gateway()
    devices = (DeviceReport(0, "card", 24_576, power_w=180.0),)
    report = ModelReport(SMALL, "loaded", url="http://beast:13131", devices=(0,))
    gateway.fleet.answered("beast", NodeReport((report,), devices=devices))
    before = time.time()
    await ask(gateway)
    (entry,) = gateway.entries
    assert (entry.key_id, entry.alias, entry.model, entry.node) == ("k1", "helexa/small", SMALL, "beast")
    assert (entry.endpoint, entry.dialect, entry.status, entry.outcome) == ("/v1/chat/completions", "openai", 200, "ok")
    assert (entry.prompt_tokens, entry.completion_tokens, entry.estimated) == (13, 10, False)
    assert entry.cost == pytest.approx((13 * 1.0 + 10 * 2.0) / 1e6)
    assert entry.total_ms == pytest.approx(trio.current_time() * 1000)
    assert entry.gpu_seconds == pytest.approx(trio.current_time())
    assert entry.energy_wh == pytest.approx(180 * trio.current_time() / 3600)
    assert (entry.first_token_ms, entry.queue_ms, entry.load_ms) == (None, None, None)
    assert before <= entry.at <= time.time()
    assert len(entry.id) == 30


async def test_streams_have_the_usage_of_their_last_event_and_a_first_token(autojump_clock, open_gateway):
    gateway = open_gateway()
    await ask(gateway, stream=True, stream_options={"include_usage": True})
    (entry,) = gateway.entries
    assert (entry.prompt_tokens, entry.completion_tokens, entry.estimated) == (13, 10, False)
    assert 0 < entry.first_token_ms < entry.total_ms


async def test_tokens_that_no_engine_reports_are_estimated(autojump_clock, open_gateway, beast):
    beast.faults.add(OddUsage(where="nowhere"))
    gateway = open_gateway()
    await ask(gateway, stream=True)
    (entry,) = gateway.entries
    assert (entry.completion_tokens, entry.estimated) == (10, True)
    assert 13 <= entry.prompt_tokens <= 20


@pytest.mark.parametrize(
    ("path", "body", "dialect", "tokens"),
    [
        ("/v1/messages", {"model": "helexa/small", **MESSAGES}, "anthropic", (13, 10)),
        ("/v1/messages/count_tokens", {"model": "helexa/small", **MESSAGES}, "anthropic", (0, 0)),
        ("/v1/responses", {"model": "helexa/small", "input": "What is the capital of Georgia?"}, "responses", (13, 10)),
        ("/v1/embeddings", {"model": "helexa/small", "input": "one two"}, "openai", (2, 0)),
    ],
)
async def test_every_dialect_is_accounted_for(autojump_clock, open_gateway, path, body, dialect, tokens):
    gateway = open_gateway(concurrency=1)
    answer = await ask(gateway, body, path)
    assert answer.status == 200
    (entry,) = gateway.entries
    assert (entry.endpoint, entry.dialect) == (path, dialect)
    assert (entry.prompt_tokens, entry.completion_tokens) == tokens


async def test_requests_without_a_key_have_a_row_and_no_limit(autojump_clock, open_gateway):
    gateway = open_gateway(mode="open", rpm=1)
    for _ in range(3):
        answer = await gateway.client().ask()
        assert answer.status == 200
    assert [entry.key_id for entry in gateway.entries] == [None] * 3
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)
    await ask(gateway)
    assert (await ask(gateway)).status == 429


async def test_a_wrong_key_has_no_row(autojump_clock, open_gateway):
    """Anybody could fill the ledger."""
    gateway = open_gateway()
    assert (await gateway.client().ask()).status == 401
    assert gateway.entries == []


async def test_refused_requests_have_a_row_with_their_status_and_without_the_name_that_they_made_up(
    autojump_clock, open_gateway
):
    gateway = open_gateway()
    await ask(gateway, {"model": "made up", "messages": []})
    await ask(gateway, b"no json")
    assert [(entry.status, entry.outcome, entry.model) for entry in gateway.entries] == [
        (404, "error", None),
        (400, "error", None),
    ]


async def test_a_client_that_leaves_has_a_row_with_what_was_generated(autojump_clock, open_gateway):
    gateway = open_gateway(tpm=100_000)
    client = gateway.client()
    await client.send(stream=True, headers=gateway.alice)
    await trio.sleep(2.48)
    await client.leave()
    await wait_all_tasks_blocked()
    (entry,) = gateway.entries
    assert (entry.outcome, entry.estimated) == ("client_disconnected", True)
    assert 0 < entry.completion_tokens < 10
    assert entry.gpu_seconds == pytest.approx(2.48)


# Limits...


async def test_answers_to_a_limited_key_carry_what_is_left(autojump_clock, open_gateway):
    gateway = open_gateway(rpm=10, tpm=600)
    answer = await ask(gateway, max_tokens=500)
    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert answer.headers["x-ratelimit-remaining-requests"] == "9"
    assert answer.headers["x-ratelimit-limit-tokens"] == "600"
    assert 70 < int(answer.headers["x-ratelimit-remaining-tokens"]) < 120  # 500 and the prompt less, 2.6 s later
    error = await ask(gateway, {"model": "nothing", "messages": []})
    assert (error.status, error.headers["x-ratelimit-limit-requests"]) == (404, "10")
    messages = await ask(gateway, {"model": "helexa/small", **MESSAGES}, "/v1/messages")
    assert messages.headers["anthropic-ratelimit-requests-limit"] == "10"
    assert messages.headers["anthropic-ratelimit-requests-reset"].endswith("z")
    assert not any(name.startswith("x-ratelimit") for name in messages.headers)


@pytest.mark.parametrize("status", ["200 OK", "429 Too Many Requests"])
async def test_our_rate_limit_headers_replace_the_engines(autojump_clock, open_gateway, status):
    more = "x-ratelimit-limit-requests: 77\r\nanthropic-ratelimit-tokens-limit: 78\r\nretry-after: 7\r\n"
    scripted = answering(with_length(b'{"choices":[]}', status=status, more=more))
    gateway = open_gateway(neurons={"beast": scripted}, rpm=10)
    answer = await ask(gateway)
    assert answer.headers["x-ratelimit-limit-requests"] == "10"
    assert "anthropic-ratelimit-tokens-limit" not in answer.headers
    assert answer.headers["retry-after"] == "7"


async def test_an_engines_rate_limit_headers_pass_for_a_key_without_such_limits(autojump_clock, open_gateway):
    scripted = answering(with_length(b'{"choices":[]}', more="x-ratelimit-limit-requests: 77\r\n"))
    gateway = open_gateway(neurons={"beast": scripted}, concurrency=3)
    assert (await ask(gateway)).headers["x-ratelimit-limit-requests"] == "77"


async def test_requests_beyond_a_limit_get_429_with_the_time_to_wait(autojump_clock, open_gateway):
    gateway = open_gateway(rpm=2)
    statuses = [(await ask(gateway)).status for _ in range(2)]
    answer = await ask(gateway)
    assert (statuses, answer.status) == ([200, 200], 429)
    assert (answer.error["type"], answer.error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    wait_s = int(answer.headers["retry-after"])
    assert answer.headers["x-ratelimit-remaining-requests"] == "0"
    await trio.sleep(wait_s)
    assert (await ask(gateway)).status == 200
    assert [entry.status for entry in gateway.entries] == [200, 200, 429, 200]


async def test_anthropic_clients_get_their_rate_limit_error(autojump_clock, open_gateway):
    gateway = open_gateway(rpm=1)
    for _ in range(2):
        answer = await ask(gateway, {"model": "helexa/small", **MESSAGES}, "/v1/messages")
    assert answer.status == 429
    assert b'"rate_limit_error"' in answer.body
    assert int(answer.headers["retry-after"]) > 0


async def test_a_spent_budget_is_429_without_a_time_and_running_streams_go_on(autojump_clock, open_gateway, limiter):
    gateway = open_gateway(budgets=(Budget("tokens", 40, "month"),))
    client = gateway.client()
    await client.send(stream=True, headers=gateway.alice, max_tokens=500, stream_options={"include_usage": True})
    await trio.sleep(0.1)
    answer = await ask(gateway)
    assert answer.status == 429
    assert (answer.error["type"], answer.error["code"]) == ("insufficient_quota", "insufficient_quota")
    assert "retry-after" not in answer.headers
    assert answer.headers["x-should-retry"] == "false"
    assert (await client.answer()).events[-1] == "[DONE]"
    budget = limiter.view(Key("k1", "alice", limits=Limits(budgets=(Budget("tokens", 40, "month"),))))
    assert budget["limits"]["budgets"][0]["used"] == 23


async def test_money_budgets_count_what_models_cost(autojump_clock, open_gateway, limiter):
    gateway = open_gateway(budgets=(Budget("money", 0.0001, "month"),))
    assert (await ask(gateway, max_tokens=12)).status == 200
    used = limiter.uses()[0].budgets[0].spent(time.time())
    assert used == pytest.approx(gateway.entries[0].cost)
    assert (await ask(gateway, max_tokens=40)).status == 429


async def test_a_reservation_is_the_prompt_and_the_answers_limit_or_the_models_mean(
    autojump_clock, open_gateway, limiter
):
    gateway = open_gateway(tpm=10**6, budgets=(Budget("tokens", 10**9, "day"),))

    async def reserved(**more):
        client = gateway.client()
        await client.send(headers=gateway.alice, **more)
        await wait_all_tasks_blocked()
        (use,) = limiter.uses()
        tokens = use.reserved[0]
        await client.answer()
        assert use.reserved == [0, 0, 0]
        return tokens

    prompt = await reserved(max_tokens=0)
    assert 13 <= prompt <= 20
    assert await reserved(max_tokens=300) == pytest.approx(prompt + 300, abs=2)
    assert await reserved(max_completion_tokens=300, n=2) == pytest.approx(prompt + 600, abs=2)
    assert await reserved(max_tokens=10**9) == pytest.approx(prompt + PROFILE.limit.output, abs=2)
    mean = limiter.means[SMALL].tokens
    assert await reserved() == pytest.approx(prompt + mean, abs=2)


async def test_reservations_are_gone_however_clients_leave(autojump_clock, open_gateway, limiter, beast):
    """In any phase, and all that is left of a request is its row."""
    gateway = open_gateway(tpm=10**9, concurrency=10**6, budgets=(Budget("gpu-seconds", 10**9, "day"),))
    chance = random.Random(11)  # noqa: S311 - repeatable

    async def one():
        client = gateway.client()
        await client.send(stream=chance.random() < 0.5, headers=gateway.alice)
        with trio.move_on_after(chance.random() * 8):
            await client.answer()
        await client.leave()

    async with trio.open_nursery() as nursery:
        for _ in range(300):
            nursery.start_soon(one)
            await trio.sleep(chance.random() * 0.05)
            live = sum(record.key_id is not None for record in gateway.request_log.live.values())
            assert limiter.live <= live
    await gateway.idle()
    (use,) = limiter.uses()
    assert (limiter.live, use.running, use.reserved) == (0, 0, [0, 0, 0])
    assert len(gateway.entries) == 300
    assert len({entry.id for entry in gateway.entries}) == 300
    assert use.budgets[0].spent(time.time()) == pytest.approx(sum(entry.gpu_seconds for entry in gateway.entries))
