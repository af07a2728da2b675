"""What the admin API tells of a request, and the memory that this takes. In memory."""

import dataclasses
import gc
import tracemalloc

import pytest
import trio
from fakes.in_memory import BODY, SMALL, InMemoryGateway
from fakes.recorded import recorded
from fakes.scripted import answering, read_request, with_length
from fakes.world import a_sim, a_sim_model, a_world, profile_of
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from catalogue.models import Alias, Limit, Resolution, Target
from gateway.cli.views.explain_view import lines
from gateway.config.settings import RetrySettings, Settings
from gateway.dialects.json_splice import LONGEST_NAME_BYTES
from gateway.errors import ServiceUnavailable
from gateway.fleet.routing.decision_log import NodeVerdict, NotedDecision
from gateway.telemetry.explain import explain_requests
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.recent import NOTES_PER_REQUEST, RecentRequests
from gateway.telemetry.request_log import RequestLog
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

JSON = b'{"object":"chat.completion","choices":[]}'
MINE = ("x-request-id: mine",)


async def explain(gateway, request_id="mine"):
    await wait_all_tasks_blocked()  # a client has its last byte shortly before its request ends
    return explain_requests(request_id, gateway.request_log, lambda *_: [], trio.current_time())


def two(nursery):
    return InMemoryGateway(nursery, {"a": neuron("a", [24576], [SMALL]), "b": neuron("b", [24576], [SMALL])})


# What is explained...


async def test_plain_request_is_explained_completely(autojump_clock, nursery):
    """From the requested name to the outcome."""
    gateway = two(nursery)
    answer = await gateway.client().ask(stream=True, headers=MINE)
    [explained] = await explain(gateway)
    took_ms = pytest.approx(trio.current_time() * 1000, abs=0.01)

    assert explained["received_at"] > 1e9
    assert explained.pop("phases_ms").keys() == {"connect", "first_byte", "idle"}
    assert {key: explained[key] for key in explained.keys() - {"received_at", "tokens", "first_token_ms"}} == {
        "request_id": "mine",
        "state": "ended",
        "position": None,
        "priority": None,
        "path": "/v1/chat/completions",
        "stream": True,
        "alias": "helexa/small",
        "target": SMALL,
        "model": SMALL,
        "resolved": "the target of its alias",
        "generation": 1,
        "choices": [
            {
                "at_ms": 0,
                "model": SMALL,
                "decision": "route",
                "node": "a",
                "candidates": [
                    {"node": "a", "state": "chosen", "detail": "0 requests"},
                    {"node": "b", "state": "passed over", "detail": "0 requests"},
                ],
            }
        ],
        "loads": [],
        "fallbacks": [],
        "attempts": [
            {
                "model": SMALL,
                "node": "a",
                "at_ms": 0,
                "took_ms": took_ms,
                "hedge": False,
                "result": "answered",
                "error": None,
            }
        ],
        "retries": 0,
        "total_ms": took_ms,
        "bytes_in": explained["bytes_in"],
        "bytes_out": len(answer.body),
        "node": "a",
        "status": 200,
        "outcome": "ok",
        "error": None,
        "ignored": None,
        "key": None,
    }
    assert explained["tokens"]["completion"] > 0
    assert 0 < explained["first_token_ms"] < explained["total_ms"]


async def test_what_a_translation_left_out_is_named(autojump_clock, nursery):
    """In the explanation and in the log's event, as in the response."""
    gateway = two(nursery)
    body = {**BODY, "max_tokens": 9, "container": "c", "output_config": {"effort": "low"}}
    with capture_logs() as logs:
        answer = await gateway.client().ask(body, "/v1/messages", headers=MINE)
        [explained] = await explain(gateway)
    [event] = [log for log in logs if log["event"] == "request"]

    assert answer.headers["x-cortex-ignored"] == "container, output_config.effort"
    assert explained["ignored"] == event["ignored"] == "container, output_config.effort"
    assert "ignored    container, output_config.effort" in "\n".join(map(str, lines(explained)))


async def test_failed_attempts_are_listed_with_their_errors(autojump_clock, nursery):
    """Each neuron and its error, in order."""
    gateway = two(nursery)
    gateway.neurons["a"].faults.add(faults.Hang(seconds=2, times=1))
    gateway.neurons["a"].faults.add(faults.HttpError(status=503, text="queue is full", retry_after_s=7, times=1))
    await gateway.client().ask(headers=MINE)
    [explained] = await explain(gateway)
    first, second = explained["attempts"]

    assert (first["node"], first["result"], first["at_ms"], first["took_ms"]) == ("a", "failed", 0, 2000)
    assert (first["error"]["code"], first["error"]["message"]) == ("service_unavailable", "queue is full")
    assert (second["node"], second["result"], second["at_ms"]) == ("b", "answered", 2000)
    assert explained["choices"][1]["candidates"][0] == {"node": "a", "state": "failed before", "detail": "this request"}
    assert (explained["retries"], explained["outcome"], explained["node"]) == (1, "ok", "b")


async def test_refused_attempt_is_listed_as_refused(autojump_clock, nursery):
    """The neuron's error response was the answer."""
    gateway = two(nursery)
    gateway.neurons["a"].faults.add(faults.HttpError(status=400, text="no such parameter"))
    await gateway.client().ask(headers=MINE)
    [explained] = await explain(gateway)

    assert [(attempt["result"], attempt["error"]["message"]) for attempt in explained["attempts"]] == [
        ("refused", "no such parameter")
    ]
    assert (explained["outcome"], explained["status"]) == ("upstream_error", 400)


async def test_cold_load_is_listed_with_its_evictions(autojump_clock):
    """The model, the node, the duration and the evicted models."""
    wanted, resident = a_sim_model("wanted", load_s=5), a_sim_model("resident")
    profiles = (profile_of(wanted), profile_of(resident))
    async with a_world(
        a_sim("beast", wanted, resident, loaded=("resident",)), a_sim("small", vram_mb=(7_000,)), profiles=profiles
    ) as world:
        await trio.sleep(60)
        await world.ask("wanted", headers=[(b"x-request-id", b"mine")])
        [explained] = explain_requests("mine", world.request_log, world.scheduler.loads_between, trio.current_time())

        [load] = explained["loads"]
        assert (load["node"], load["outcome"], load["evicted"]) == ("beast", "loaded", ["resident"])
        assert load["took_ms"] == pytest.approx(explained["phases_ms"]["load"], abs=1)
        [choice] = explained["choices"]
        assert choice["decision"] == "load"
        assert {one["node"]: one["detail"] for one in choice["candidates"]} == {
            "beast": "it fits once others are unloaded, 2000 MB free",
            "small": "cannot hold it",
        }


async def test_failed_load_is_listed_with_its_reason(autojump_clock):
    """As the neuron stated it."""
    model = a_sim_model("m", load_s=5)
    sim = a_sim("beast", model)
    sim.faults.add(faults.LoadFails())
    async with a_world(sim, profiles=(profile_of(model),)) as world:
        answer = await world.ask("m", headers=[(b"x-request-id", b"mine")])
        [explained] = explain_requests("mine", world.request_log, world.scheduler.loads_between, trio.current_time())

        assert answer.status == 502
        [load] = explained["loads"]
        assert load["outcome"] == "failed"
        assert load["reason"] in explained["error"]["message"]
        assert [choice["decision"] for choice in explained["choices"]] == ["load", "cold_load_failed"]


async def test_fallbacks_are_listed_with_their_loads_and_attempts(autojump_clock):
    """Those that failed, and those that were skipped."""
    target, first, short, last = models = [a_sim_model(name, load_s=5) for name in ("target", "first", "short", "last")]
    sim = a_sim("beast", *models, loaded=("target", "last"), vram_mb=(40_000,))
    sim.faults.add(faults.HttpError(model=target.id, status=503, text="queue is full"))
    sim.faults.add(faults.LoadFails(model=first.id, seconds=3))
    profiles = [profile_of(model, limit=Limit(context=2_000) if model is short else None) for model in models]
    alias = Alias("x", (Target(target.id),), fallback=(first.id, short.id, last.id))
    async with a_world(sim, profiles=tuple(profiles), settings=Settings(retries=RetrySettings(attempts=0))) as world:
        world.catalogue_store.accept(dataclasses.replace(world.catalogue_store.current, aliases={"x": alias}))
        await world.ask("x", content="word " * 3_000, headers=[(b"x-request-id", b"mine")])
        [explained] = explain_requests("mine", world.request_log, world.scheduler.loads_between, trio.current_time())

    assert (explained["alias"], explained["target"], explained["model"], explained["outcome"]) == (
        "x",
        "target",
        "last",
        "ok",
    )
    assert [(attempt["model"], attempt["result"]) for attempt in explained["attempts"]] == [
        ("target", "failed"),
        ("last", "answered"),
    ]
    [load] = explained["loads"]
    assert (load["model"], load["outcome"]) == ("first", "failed")
    assert [(choice["model"], choice["decision"]) for choice in explained["choices"]] == [
        ("first", "load"),
        ("first", "cold_load_failed"),
    ]
    assert [(one["model"], one["to"], one["passed_over"], one["error"]["code"]) for one in explained["fallbacks"]] == [
        ("target", "first", False, "service_unavailable"),
        ("first", "short", True, "context_length_exceeded"),
        ("first", "last", False, "cold_load_failed"),
    ]
    texts = [str(line) for line in lines(explained)]
    assert texts[3].endswith(", by the fallback last")
    assert [line[12:].partition(":")[0] for line in texts[texts.index("") + 1 :] if "beast  " not in line] == [
        "sent to beast, for target; failed after 0.0 ms",
        "target failed, so the request fell back to first",
        "first was not loaded, so a load was started",
        "beast began to load first; failed after 3.00 s",
        "no neuron could serve first",
        "the fallback short was skipped",
        "first failed, so the request fell back to last",
        "sent to beast, for last; answered after 1.29 s",
    ]


async def test_running_request_is_explained_so_far(autojump_clock, nursery):
    """With its current phase."""
    gateway = two(nursery)
    client = gateway.client()
    await client.send(stream=True, headers=MINE)
    await trio.sleep(1.5)
    [explained] = await explain(gateway)

    assert (explained["state"], explained["outcome"], explained["total_ms"]) == ("running", None, 1500)
    assert explained["phases_ms"] == {"connect": 0, "first_byte": 1500}
    assert [(attempt["result"], attempt["took_ms"]) for attempt in explained["attempts"]] == [(None, 1500)]
    await client.leave()
    [explained] = await explain(gateway)
    assert (explained["state"], explained["outcome"]) == ("ended", "client_disconnected")
    assert explained["attempts"][0]["result"] == "cancelled"


async def test_repeated_id_lists_every_request(autojump_clock, nursery):
    """The oldest first; requests with other ids are not listed."""
    gateway = two(nursery)
    await gateway.client().ask(headers=MINE)
    await gateway.client().ask({"model": "nobody/has-it"}, headers=MINE)
    await gateway.client().ask(headers=("x-request-id: other",))
    client = gateway.client()
    await client.send(stream=True, headers=MINE)
    await trio.sleep(0.5)

    assert [explained["status"] for explained in await explain(gateway)] == [200, 404, None]
    assert await explain(gateway, "unheard of") == []


# What it takes of memory...


def ended(request_log, request_id="id", **more):
    with recorded(request_log, request_id, "/v1/chat/completions") as record:
        for name, value in more.items():
            setattr(record.routing, name, value)
    return record


async def test_only_the_last_requests_are_kept(autojump_clock):
    """As many as configured; with 0, none."""
    request_log = RequestLog(Metrics(), log_requests=False, remembered=10)
    for number in range(25):
        ended(request_log, str(number))

    assert len(request_log.recent) == 10
    assert not request_log.recent.find("14")
    assert request_log.recent.find("15")
    nothing = RequestLog(Metrics(), log_requests=False, remembered=0)
    ended(nothing)
    assert len(nothing.recent) == 0


async def test_refused_requests_displace_no_others(autojump_clock):
    """They have a small place of their own: a storm of 503s must not flush what an operator wants explained."""
    request_log = RequestLog(Metrics(), log_requests=False, remembered=20, remembered_refused=2)
    ended(request_log, "served", node="beast")
    for number in range(100):
        with recorded(request_log, str(number), "/v1/chat/completions") as record:
            record.failed(ServiceUnavailable("no healthy nodes available"))
    with recorded(request_log, "failed there", "/v1/chat/completions") as record:
        record.routing.node = "beast"
        record.failed(ServiceUnavailable("it broke off"))

    assert request_log.recent.find("served")
    assert request_log.recent.find("failed there")
    assert [bool(request_log.recent.find(str(number))) for number in (97, 98, 99)] == [False, True, True]
    assert len(request_log.recent) == 4


async def test_fewer_requests_are_kept_if_they_have_many_notes(autojump_clock):
    """Fewer requests instead of more memory."""
    choice = NotedDecision(
        0.0, "m", "load", None, tuple(NodeVerdict(str(number), "not loaded") for number in range(100))
    )
    recent = RecentRequests(100, 10)
    request_log = RequestLog(Metrics(), log_requests=False)
    request_log.recent = recent
    for number in range(100):
        ended(request_log, str(number), decisions=[choice] * 2)

    assert len(recent) == 100 * NOTES_PER_REQUEST // 200
    assert recent.find("99")


async def test_large_parts_of_a_request_are_not_kept(autojump_clock, nursery):
    """Neither its body, nor the name of an unknown model, nor an error's traceback."""
    gateway = InMemoryGateway(nursery, {"a": breaking}, Settings())
    gateway.request_log.log_requests = False

    async def flood():
        for _ in range(5):
            await gateway.client().ask(
                {"model": "m" * (LONGEST_NAME_BYTES - 2), "padding": "x" * 1_000_000}, headers=MINE
            )
            await gateway.client().ask(padding="x" * 1_000_000, headers=MINE)

    assert await kept_bytes_of(flood) < 500_000  # ten requests of a megabyte each
    entries = await explain(gateway)
    assert sorted({(explained["outcome"], len(explained["model"])) for explained in entries}, reverse=True) == [
        ("error", 300),
        ("error", len(SMALL)),
    ]
    assert len(entries) == 20


async def test_thousand_requests_take_a_few_megabytes(autojump_clock, nursery):
    """With a failed and a successful attempt each, an error and verdicts: more than most requests."""
    gateway = InMemoryGateway(nursery, {"a": refusing, "b": answering(*[with_length(JSON)] * 99)}, Settings())
    gateway.request_log.log_requests = False

    async def flood():
        for _ in range(50):
            await gateway.client().ask(headers=MINE)

    assert await kept_bytes_of(flood) / 50 < 6_000
    assert (await explain(gateway))[-1]["retries"] == 1
    assert gateway.request_log.recent.find("mine")[-1].routing.note_count >= 4


async def kept_bytes_of(flood):
    """The memory that is still in use of what a second flood took."""
    await flood()
    await wait_all_tasks_blocked()
    gc.collect()
    tracemalloc.start()
    await flood()
    await wait_all_tasks_blocked()
    gc.collect()
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return kept_bytes


async def refusing(stream):
    while await read_request(stream):
        await stream.send_all(with_length(b'{"error":"busy"}', status="503 Service Unavailable"))


async def breaking(stream):
    await read_request(stream)
    await stream.aclose()


async def test_kept_error_has_no_traceback(autojump_clock):
    """A traceback would keep every frame, and so the request."""
    request_log = RequestLog(Metrics(), log_requests=False)
    with recorded(request_log) as record:
        record.failed(ServiceUnavailable("x" * 5000, param="load"))

    assert record.error is None
    assert (record.error_summary.code, record.error_summary.param, len(record.error_summary.message)) == (
        "service_unavailable",
        "load",
        1000,
    )


@pytest.mark.parametrize(
    ("sticky", "why"),
    [
        ("none", "90 of 100 by weight among 2 targets"),
        ("conversation", "90 of 100 by weight among 2 targets, kept by conversation"),
    ],
)
async def test_drawn_target_is_explained(autojump_clock, nursery, sticky, why):
    """Its weight, the number of targets, and stickiness."""
    gateway = two(nursery)
    alias = Alias("helexa/small", (Target(SMALL, 90), Target("other", 10)), sticky=sticky)
    record = ended(gateway.request_log, "mine", resolution=Resolution(SMALL, alias.name, alias))

    assert record.error_summary is None
    assert [explained["resolved"] for explained in await explain(gateway)] == [why]
