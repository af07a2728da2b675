"""What an alias does beyond naming a target, as the client and the neuron see it."""

import dataclasses
import json

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, ROLE, chunked, read_request, with_length
from fakes.world import a_sim, a_sim_model, a_world, profile_of
from structlog.testing import capture_logs

from catalogue.load import parse
from catalogue.models import Alias, Limit, Target
from gateway.config.settings import DeadlineSettings, RetrySettings, Settings
from gateway.fleet.reports import ModelReport, NodeReport
from gateway.proxy.context import shutting_down
from neuron.simulated.faults import Drop, Hang, HttpError, LoadFails, Refuse

pytestmark = pytest.mark.usefixtures("fresh_loggers")

OTHER = "Qwen/Qwen3-8B"
JSON = b'{"object":"chat.completion","model":"what-the-neuron-says","choices":[]}'


def answering_all(answer=None, received=None):
    """A neuron that gives the same answer to every request, and keeps the bodies it received."""

    async def peer(stream):
        while request := await read_request(stream):
            if received is not None:
                received.append(request.partition(b"\r\n\r\n")[2])
            await stream.send_all(answer or with_length(JSON))

    return peer


def a_gateway(nursery, aliases, peer):
    """A gateway in front of one neuron with two models, with these aliases."""
    gateway = InMemoryGateway(nursery, {"beast": peer})
    models = (ModelReport(name, "loaded", url="http://beast:13131") for name in (SMALL, OTHER))
    gateway.fleet.answered("beast", NodeReport(tuple(models), devices=()))
    text = f"[aliases]\n{aliases}"
    gateway.catalogue.current = parse(text.encode(), path="models.toml", generation=1, loaded_at=0.0)
    return gateway


def saying(*contents):
    return {"model": "x", "messages": [{"role": "user", "content": content} for content in contents]}


async def answered_by(gateway, body):
    answer = await gateway.client().ask(body)
    assert answer.status == 200
    assert answer.headers["x-cortex-alias"] == "x"
    return answer.headers["x-cortex-model"]


# Several targets ......................................................................................................


async def test_sticky_alias_keeps_each_conversation_at_its_target(nursery, autojump_clock):
    """The response header names the model; over many conversations the weights show."""
    aliases = f'x = {{ targets = ["{SMALL}", "{OTHER}"], sticky = "conversation" }}'
    gateway = a_gateway(nursery, aliases, answering_all())
    first = [await answered_by(gateway, saying(f"hello {number}")) for number in range(40)]
    second = [await answered_by(gateway, saying(f"hello {number}", "go on")) for number in range(40)]

    assert first == second
    assert 5 < first.count(SMALL.lower()) < 35
    await gateway.idle()


async def test_alias_without_stickiness_draws_a_target_for_each_request(nursery, autojump_clock):
    """Identical requests, too, go to different targets."""
    gateway = a_gateway(nursery, f'x = {{ targets = ["{SMALL}", "{OTHER}"] }}', answering_all())
    models = {await answered_by(gateway, saying("hello")) for _ in range(60)}

    assert models == {SMALL.lower(), OTHER.lower()}


async def test_requests_are_counted_by_target_and_generation(nursery, autojump_clock):
    """A rollout compares these series."""
    gateway = a_gateway(nursery, f'x = "{SMALL}"', answering_all())
    await answered_by(gateway, saying("hello"))
    later = dataclasses.replace(gateway.catalogue.current, generation=2)
    gateway.catalogue.current = dataclasses.replace(later, aliases={"x": Alias.plain("x", OTHER)})
    await answered_by(gateway, saying("hello"))

    shown = gateway.metrics.expose().decode()
    for target, generation in ((SMALL, 1), (OTHER, 2)):
        of = f'alias="x",generation="{generation}",target="{target}"'
        assert f"cortex_alias_target_requests_total{{{of}}} 1.0" in shown
        assert f"cortex_alias_target_duration_seconds_count{{{of}}} 1.0" in shown


# Parameters ...........................................................................................................


async def test_defaults_are_added_and_forced_values_replaced(nursery, autojump_clock):
    """`params` are added, `force` replaces, and every other byte arrives as the client sent it."""
    received = []
    policy = f'x = {{ target = "{SMALL}", params = {{ temperature = 0.2, top_p = 0.9 }}, force = {{ seed = 7 }} }}'
    gateway = a_gateway(nursery, policy, answering_all(received=received))
    for body in (
        b'{ "model":"x","seed" : 5 , "top_p":null, "a":{"temperature":1} }',
        b'{"model":"x","temperature":1e0,"top_p":1}',
    ):
        await gateway.client().ask(body)

    assert received == [
        b'{"temperature":0.2, "model":"Qwen/Qwen3-1.7B","seed" : 7 , "top_p":null, "a":{"temperature":1} }',
        b'{"seed":7,"model":"Qwen/Qwen3-1.7B","temperature":1e0,"top_p":1}',
    ]


async def test_parameters_apply_to_the_translated_body(nursery, autojump_clock):
    """An alias states parameters in the neuron's dialect, whatever the client's dialect is."""
    received = []
    policy = f'x = {{ target = "{SMALL}", params = {{ temperature = 0.2 }}, force = {{ max_tokens = 9 }} }}'
    answer = {"model": "m", "choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}], "usage": {}}
    gateway = a_gateway(nursery, policy, answering_all(with_length(json.dumps(answer).encode()), received))
    answer = await gateway.client().ask(saying("hello") | {"max_tokens": 5}, path="/v1/messages")

    assert answer.status == 200
    asked = json.loads(received[0])
    assert (asked["model"], asked["temperature"], asked["max_tokens"]) == (SMALL, 0.2, 9)


# The alias's name in the answer .......................................................................................


def chunk(**delta):
    return b"data: " + json.dumps({"model": "said/so", "choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


async def test_answer_names_the_alias_with_echo_alias(nursery, autojump_clock):
    """Without `echo = "alias"` the answer names the neuron's model."""
    gateway = a_gateway(
        nursery, f'x = {{ target = "{SMALL}", echo = "alias" }}\ny = {{ target = "{SMALL}" }}', answering_all()
    )

    answer = await gateway.client().ask(saying("hello"))
    assert answer.body == JSON.replace(b"what-the-neuron-says", b"x")
    assert answer.headers["x-cortex-model"] == SMALL.lower()
    assert (await gateway.client().ask(saying("hello") | {"model": "y"})).body == JSON


async def test_stream_names_the_alias_with_echo_alias(nursery, autojump_clock):
    """Every event names it; without `echo = "alias"` the stream passes byte by byte."""
    events = (ROLE, chunk(content="Tbi"), chunk(content='lisi "model":"said/so"'), DONE)
    gateway = a_gateway(nursery, f'x = {{ target = "{SMALL}", echo = "alias" }}', answering_all(chunked(*events)))
    answer = await gateway.client().ask(saying("hello") | {"stream": True})

    assert answer.body == b"".join(events).replace(b'{"model": "said/so"', b'{"model": "x"')


async def test_translated_stream_names_the_alias_too(nursery, autojump_clock):
    """The alias's name passes through the translation."""
    events = (chunk(role="assistant"), chunk(content="hi"))
    end = b'data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
    gateway = a_gateway(
        nursery, f'x = {{ target = "{SMALL}", echo = "alias" }}', answering_all(chunked(*events, end, DONE))
    )
    asked = saying("hello") | {"stream": True, "max_tokens": 5}
    answer = await gateway.client().ask(asked, path="/v1/messages")

    [start] = [json.loads(line[6:]) for line in answer.body.decode().split("\n") if '"message_start"' in line[6:]]
    assert start["message"]["model"] == "x"


async def test_renamed_stream_that_breaks_off_ends_in_one_error_event(nursery, autojump_clock):
    """Renaming the model does not change how a stream fails."""
    broken = chunked(chunk(content="Tbi"), end=b"")

    async def peer(stream):
        await read_request(stream)
        await stream.send_all(broken)
        await stream.aclose()

    gateway = a_gateway(nursery, f'x = {{ target = "{SMALL}", echo = "alias" }}', peer)
    answer = await gateway.client().ask(saying("hello") | {"stream": True})

    first, last = answer.events
    assert json.loads(first)["model"] == "x"
    assert json.loads(last)["error"]["code"] == "upstream_connection_error"
    await gateway.idle()


async def test_answer_that_is_not_json_is_not_renamed(nursery, autojump_clock):
    """Sound passes unchanged."""
    sound = b'RIFF"model":"said/so"'
    gateway = a_gateway(
        nursery,
        f'x = {{ target = "{SMALL}", echo = "alias" }}',
        answering_all(with_length(sound, kind="audio/wav")),
    )
    answer = await gateway.client().ask({"model": "x", "input": "hello"}, path="/v1/audio/speech")

    assert answer.body == sound


# Fallback .............................................................................................................

A, B, C = a_sim_model("lab/a"), a_sim_model("lab/b"), a_sim_model("lab/c")
ONE_TRY = Settings(retries=RetrySettings(attempts=0))


def falling_back_to(world, *models, target=A, known=()):
    """An alias `x` for the target, with these fallbacks."""
    alias = Alias("x", (Target(target.id),), fallback=tuple(model.id for model in models))
    world.catalogue_store.accept(
        dataclasses.replace(
            world.catalogue_store.current,
            models={profile.id: profile for profile in map(profile_of, known)},
            aliases={"x": alias},
        )
    )


def logged_requests(logged):
    return [entry for entry in logged if entry["event"] == "request"]


FAULTS = [
    Refuse(model=A.id),
    HttpError(model=A.id, status=500),
    HttpError(model=A.id, status=503, retry_after_s=7),
    HttpError(model=A.id, status=429),
    Hang(model=A.id),
]


@pytest.mark.parametrize(
    ("fault", "stream"),
    [*((fault, stream) for fault in FAULTS for stream in (True, False)), (Drop(model=A.id, after=1), True)],
)
async def test_fallback_serves_when_the_target_fails(autojump_clock, fault, stream):
    """For every failure before the first token; the response header names the model that answered."""
    settings = dataclasses.replace(ONE_TRY, deadlines=DeadlineSettings(first_byte_seconds=50))
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,)), settings=settings) as world:
        falling_back_to(world, B)
        world.hosts["n"].sim.faults.add(fault)
        answer = await world.ask("x", stream=stream)

        assert (answer.status, answer.text, answer.errors) == (200, "Tbilisi", [])
        if not (
            stream and isinstance(fault, Hang | Drop)
        ):  # in that case the head is sent before the answering model is known
            assert answer.headers["x-cortex-model"] == B.id
        fell = 'cortex_alias_fallbacks_total{alias="x",model="lab/a",to="lab/b"} 1.0'
        assert fell in world.metrics.expose().decode()


async def test_early_head_names_no_model_while_a_fallback_may_answer(autojump_clock):
    """The log names it."""
    settings = dataclasses.replace(ONE_TRY, deadlines=DeadlineSettings(first_byte_seconds=50))
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,)), settings=settings) as world:
        falling_back_to(world, B)
        world.hosts["n"].sim.faults.add(Hang(model=A.id))
        answer = await world.ask("x", stream=True)

    assert (answer.status, answer.text) == (200, "Tbilisi")
    assert answer.headers["x-cortex-alias"] == "x"
    assert not {"x-cortex-model", "x-cortex-node"} & answer.headers.keys()


@pytest.mark.parametrize("stream", [True, False])
async def test_fallback_serves_when_no_neuron_can_have_the_target(autojump_clock, stream):
    """The target is unknown, fits on no neuron, or finds no room; fallbacks are tried in order."""
    pinned = profile_of(A, pinned_on=("elsewhere",))
    async with a_world(a_sim("n", A, B, loaded=(B.id,), vram_mb=(10_000,))) as world:
        falling_back_to(world, a_sim_model("lab/unknown"), B, known=(A,))
        world.catalogue_store.accept(dataclasses.replace(world.catalogue_store.current, models={A.id: pinned}))
        answer = await world.ask("x", stream=stream)

        assert (answer.status, answer.headers["x-cortex-model"]) == (200, B.id)
        assert world.load_calls() == []


async def test_fallback_serves_when_every_load_of_the_target_fails(autojump_clock):
    """After every neuron that could load it has failed."""
    async with a_world(a_sim("n", A, B, loaded=(B.id,), vram_mb=(20_000,))) as world:
        falling_back_to(world, B, known=(A, B))
        world.hosts["n"].sim.faults.add(LoadFails(model=A.id))
        answer = await world.ask("x")

        assert (answer.status, answer.headers["x-cortex-model"]) == (200, B.id)
        assert world.load_calls(A.id) == ["n"]


async def test_request_waits_for_a_target_that_is_being_loaded(autojump_clock):
    """A cold model is no failure, so there is no fallback."""
    async with a_world(a_sim("n", A, B, loaded=(B.id,), vram_mb=(20_000,))) as world:
        falling_back_to(world, B, known=(A, B))
        answer = await world.ask("x")

        assert (answer.status, answer.headers["x-cortex-model"]) == (200, A.id)


async def test_no_fallback_after_the_commit_point(autojump_clock):
    """The client has seen part of an answer, so it gets an error event and no second answer."""
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,)), settings=ONE_TRY) as world:
        falling_back_to(world, B)
        world.hosts["n"].sim.faults.add(Drop(model=A.id, after=2))
        answer = await world.ask("x", stream=True)

        assert answer.headers["x-cortex-model"] == A.id
        assert len(answer.errors) == 1
        assert [entry for entry in world.hosts["n"].sim.requests if entry.model == B.id] == []


async def test_no_fallback_while_the_gateway_drains(autojump_clock):
    """The target would have to be loaded: the request is refused, so that the client tries another gateway."""

    async def stop(world):
        await trio.sleep(0.5)
        world.inference.drain()
        world.hosts["n"].sim.unload(A.id)

    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,))) as world:
        falling_back_to(world, B, known=(A, B))
        connect = world.upstream._connect

        async def connect_slowly(origin):
            await trio.sleep(1)
            return await connect(origin)

        world.upstream._connect = connect_slowly
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stop, world)
            answer = await world.ask("x")

        assert (answer.status, answer.errors[0]["code"]) == (503, "shutting_down")
        assert [entry for entry in world.hosts["n"].sim.requests if entry.model == B.id] == []


async def test_no_fallback_for_a_request_that_the_neuron_rejects(autojump_clock):
    """A 400 is the client's mistake, whatever the model."""
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,))) as world:
        falling_back_to(world, B)
        world.hosts["n"].sim.faults.add(HttpError(model=A.id, status=400, text="no such parameter"))
        answer = await world.ask("x")

        assert (answer.status, answer.headers["x-cortex-model"]) == (400, A.id)
        assert "fallbacks" not in world.metrics.expose().decode()


@pytest.mark.parametrize("attempts", [0, 2])
async def test_client_gets_the_targets_error_when_every_model_fails(autojump_clock, attempts):
    """Its error response, Retry-After and model name; and every model had its attempts."""
    settings = Settings(retries=RetrySettings(attempts=attempts))
    sims = [a_sim(name, A, B, loaded=(A.id, B.id), vram_mb=(20_000,)) for name in ("m", "n")]
    async with a_world(*sims, settings=settings) as world:
        falling_back_to(world, B, C)
        for sim in sims:
            sim.faults.add(HttpError(model=A.id, status=503, retry_after_s=7, text="a is full"))
            sim.faults.add(HttpError(model=B.id, status=500, text="b is broken"))
        answer = await world.ask("x")

        assert (answer.status, answer.headers["retry-after"]) == (503, "7")
        assert answer.headers["x-cortex-model"] == A.id
        assert answer.errors[0]["message"] == "a is full"
        assert len([entry for sim in sims for entry in sim.requests if entry.model == B.id]) == min(attempts, 1) + 1


LONG = "word " * 3_000


async def test_fallback_with_a_too_small_context_is_skipped(autojump_clock):
    """It would answer 400 to a prompt that the target takes; the next fallback gets the request."""
    async with a_world(a_sim("n", A, B, C, loaded=(A.id, C.id), vram_mb=(30_000,)), settings=ONE_TRY) as world:
        falling_back_to(world, B, C, known=(A, B, C))
        short = profile_of(B, limit=Limit(context=2_000))
        world.catalogue_store.accept(
            dataclasses.replace(
                world.catalogue_store.current, models=world.catalogue_store.current.models | {B.id: short}
            )
        )
        world.hosts["n"].sim.faults.add(HttpError(model=A.id, status=503))
        answer = await world.ask("x", content=LONG)

        assert (answer.status, answer.headers["x-cortex-model"]) == (200, C.id)
        assert world.load_calls(B.id) == []
        assert (await world.ask("x")).headers["x-cortex-model"] == B.id


async def test_client_gets_the_targets_error_when_no_fallback_takes_the_prompt(autojump_clock):
    """Not the limit of a model it did not ask for: the same prompt works once the target is back."""
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,)), settings=ONE_TRY) as world:
        falling_back_to(world, B)
        short = profile_of(B, limit=Limit(context=2_000))
        world.catalogue_store.accept(dataclasses.replace(world.catalogue_store.current, models={B.id: short}))
        world.hosts["n"].sim.faults.add(HttpError(model=A.id, status=503, retry_after_s=7, text="a is full"))
        answer = await world.ask("x", content=LONG)

        assert (answer.status, answer.errors[0]["message"], answer.headers["retry-after"]) == (503, "a is full", "7")
        assert "fallbacks" not in world.metrics.expose().decode()


async def test_no_fallback_for_a_prompt_too_long_for_the_target(autojump_clock):
    """A fallback is for a target that cannot serve, not for a request that is wrong for it."""
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,))) as world:
        falling_back_to(world, B)
        short = profile_of(A, limit=Limit(context=2_000))
        world.catalogue_store.accept(dataclasses.replace(world.catalogue_store.current, models={A.id: short}))
        answer = await world.ask("x", content=LONG)

        assert (answer.status, answer.errors[0]["code"]) == (400, "context_length_exceeded")


async def test_fallback_is_logged(nursery, autojump_clock):
    """One line with the reason when it happens, and a field in the request's own line."""

    async def peer(stream):
        while request := await read_request(stream):
            refused = SMALL.encode() in request
            await stream.send_all(with_length(JSON, status="503 Busy") if refused else with_length(JSON))

    with capture_logs() as logged:
        gateway = a_gateway(nursery, f'x = {{ target = "{SMALL}", fallback = ["{OTHER}"] }}', peer)
        assert await answered_by(gateway, saying("hello")) == OTHER.lower()
        await gateway.idle()

    [event] = logged_requests(logged)
    assert (event["model"], event["fell_back_from"], event["outcome"]) == (OTHER, SMALL, "ok")
    [fell] = [entry for entry in logged if entry["event"] == "fallback"]
    assert (fell["alias"], fell["model"], fell["falls_back_to"]) == ("x", SMALL, OTHER)


async def test_no_fallback_for_a_cancelled_request(autojump_clock, nursery):
    """Cancelled by an operator is not "cannot serve"."""
    async with a_world(a_sim("n", A, B, loaded=(A.id, B.id), vram_mb=(20_000,))) as world:
        falling_back_to(world, B)
        world.hosts["n"].sim.faults.add(Hang(model=A.id))
        answers = []

        async def ask():
            answers.append(await world.ask("x"))

        nursery.start_soon(ask)
        await trio.sleep(3)
        world.inference.drain()
        world.inference.cut(shutting_down())
        await trio.sleep(1)

        assert (answers[0].status, answers[0].errors[0]["code"]) == (503, "shutting_down")
        assert [entry for entry in world.hosts["n"].sim.requests if entry.model == B.id] == []


async def test_resolved_target_is_not_its_own_fallback(autojump_clock):
    """It has had its attempts."""
    async with a_world(a_sim("n", A, loaded=(A.id,)), settings=ONE_TRY) as world:
        falling_back_to(world, A, known=(A,))
        world.hosts["n"].sim.faults.add(HttpError(model=A.id, status=500))

        assert (await world.ask("x")).status == 500
        assert len(world.hosts["n"].sim.requests) == 1
