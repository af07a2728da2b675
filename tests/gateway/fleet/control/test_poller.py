"""The poller: what a poll learns, that a bad neuron does not disturb the others, and when calls are repeated."""

from contextlib import asynccontextmanager

import httpx
import pytest
import structlog
import trio
from fakes.fleets import a_model
from fakes.neuron import FakeNeuron, gpu, model

from gateway.config.settings import DeadlineSettings, NeuronSettings, PollSettings
from gateway.fleet.control.neuron_client import NeuronClient
from gateway.fleet.control.poller import MODELS_PER_NEURON, URL_QUESTIONS_AT_ONCE, Poller
from gateway.fleet.state import Fleet
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.telemetry.metrics import Metrics

ENDPOINT_PATH = "/models/m/endpoint"


@asynccontextmanager
async def polling(**neurons):
    """A fleet of these neurons, polled every 10 s, each poll within 4 s."""
    settings = [NeuronSettings(name, f"http://{name}:13131") for name in neurons]
    fleet = Fleet(settings, misses=3)
    clients = {entry.name: NeuronClient(entry.endpoint, transport=neurons[entry.name]) for entry in settings}
    poller = Poller(fleet, clients, PollSettings(interval_seconds=10, timeout_seconds=4, misses=3))
    async with trio.open_nursery() as nursery:
        await nursery.start(poller.run)
        yield fleet, poller
        nursery.cancel_scope.cancel()
    for client in clients.values():
        await client.aclose()


async def test_poller_is_ready_with_a_fleet(autojump_clock):
    """The first request finds everything that a poll reports."""
    neuron = FakeNeuron(model("m", capabilities=["vision"], limit={"context": 4096}))
    neuron.counters = [{"id": "m", "in_flight": 2, "queue_depth": 1}]
    neuron.activation = {"state": "pre_warming", "pending": ["p"], "in_progress": "q", "completed": [], "failed": []}
    async with polling(a=neuron) as (fleet, _):
        node = fleet.nodes["a"]
        (replica,) = fleet.replicas("m")
        assert (replica.url, replica.load) == ("http://a:8080", 3)
        assert (replica.report.capabilities, replica.report.limit.context) == (("vision",), 4096)
        assert (node.devices[0].vram_total_mb, node.devices[0].vram_free_mb) == (24_000, 20_000)
        assert (node.uptime_s, node.activation.awaited) == (1000.0, ("q", "p"))


async def test_hung_neuron_delays_only_the_start_and_only_until_the_deadline(autojump_clock):
    """The poller is ready after its deadline; the other neurons are polled on time."""
    hung, well = FakeNeuron(), FakeNeuron(model("m"))
    hung.hanging = {"/health", "/models", "/discovery"}
    async with polling(hung=hung, well=well) as (fleet, _):
        assert trio.current_time() == 4
        assert fleet.replicas("m")
        await trio.sleep_until(35)
        assert well.request_times("/models") == [0, 10, 20, 30]
        assert hung.request_times("/models") == [0, 4, 8, 12, 16, 20, 24, 28, 32], (
            "a neuron that is down is polled at once"
        )
        assert hung.running == 1, "one poll is under way; its /health was given up"
        assert not fleet.nodes["hung"].ever_answered


async def test_neuron_is_unhealthy_after_three_misses_and_healthy_after_one_answer(autojump_clock):
    """It answers at 0 and not again until 30: unhealthy at 30, healthy at 40."""
    neuron = FakeNeuron(model("m"))
    async with polling(a=neuron) as (fleet, _):
        neuron.unreachable = True
        await trio.sleep_until(29)
        assert fleet.replicas("m")
        await trio.sleep_until(31)
        assert not fleet.any_healthy()
        assert fleet.replicas("m") == ()
        neuron.unreachable = False
        await trio.sleep_until(41)
        assert fleet.replicas("m")


@pytest.mark.parametrize("how", ["hanging", "failing"])
async def test_health_failing_alone_never_marks_a_neuron_unhealthy(autojump_clock, how):
    """Such a neuron serves its models, also new ones; only its readings are unknown."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (fleet, _):
        getattr(neuron, how).add("/health")
        neuron.models = [model("m")]
        await trio.sleep_until(65)
        assert fleet.nodes["a"].misses == 0
        assert fleet.replicas("m")[0].url == "http://a:8080"
        assert fleet.nodes["a"].devices[0].vram_free_mb is None
        assert fleet.nodes["a"].devices[0].vram_total_mb == 24_000


ABSURD = "1" + "0" * 400  # an integer that does not fit a float


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/health", f'{{"uptime_secs":{ABSURD}}}'),
        ("/health", f'{{"devices":[{{"index":0,"vram_free_mb":{ABSURD}}}]}}'),
        ("/health", f'{{"devices":[{{"index":0,"temp_c":{ABSURD}}}]}}'),
        ("/health", f'{{"models":[{{"id":"m","in_flight":{ABSURD}}}]}}'),
        ("/discovery", f'{{"devices":[{{"index":0,"vram_total_mb":{ABSURD}}}]}}'),
        ("/models", f'[{{"id":"m","status":"loaded","vram_used_mb":{ABSURD}}}]'),
        ("/health", '{"uptime_secs":1e300,"devices":[{"index":1e300}]}'),
    ],
)
async def test_absurd_number_affects_only_its_neuron(autojump_clock, path, text):
    """The answer is malformed; other neurons and the metrics go on. Once it crashed the gateway."""
    mad, sane = FakeNeuron(model("m")), FakeNeuron(model("m"))
    async with polling(a=mad, b=sane) as (fleet, _):
        metrics = Metrics()
        metrics.watch_fleet(lambda: fleet.snapshot().nodes)
        mad.restart()  # so that every call is repeated
        mad.overrides[path] = lambda: httpx.Response(200, stream=httpx.ByteStream(text.encode()))
        await trio.sleep_until(65)

        assert fleet.nodes["a"].healthy is (path != "/models")
        assert [replica.node.name for replica in fleet.replicas("m")][-1] == "b"
        assert b'cortex_node_healthy{node="b"} 1.0' in metrics.expose()


async def test_models_failing_is_a_miss(autojump_clock):
    """`/models` decides whether a neuron is up."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (fleet, _):
        neuron.failing.add("/models")
        await trio.sleep_until(11)
        assert fleet.nodes["a"].misses == 1


async def test_discovery_is_read_once_and_again_after_a_restart(autojump_clock):
    """Hardware is constant while a neuron runs."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (fleet, _):
        await trio.sleep_until(25)
        assert neuron.request_times("/discovery") == [0]
        neuron.restart()
        neuron.devices = [gpu(0), gpu(1, total_mb=80_000)]
        await trio.sleep_until(45)
        assert neuron.request_times("/discovery") == [0, 30]
        assert [device.vram_total_mb for device in fleet.nodes["a"].devices] == [24_000, 80_000]


async def test_discovery_is_asked_until_it_answers(autojump_clock):
    """The neuron is healthy without it, and its devices are unknown until then."""
    neuron = FakeNeuron()
    neuron.failing.add("/discovery")
    async with polling(a=neuron) as (fleet, _):
        assert fleet.any_healthy()
        assert fleet.nodes["a"].devices is None
        await trio.sleep_until(15)
        neuron.failing.clear()
        await trio.sleep_until(35)
        assert neuron.request_times("/discovery") == [0, 10, 20]
        assert fleet.nodes["a"].devices is not None


async def test_endpoint_is_asked_once_until_the_model_goes(autojump_clock):
    """Again only when the model was unloaded in between."""
    neuron = FakeNeuron(model("m"), model("n", "unloaded"))
    async with polling(a=neuron) as (fleet, _):
        await trio.sleep_until(25)
        assert neuron.request_times(ENDPOINT_PATH) == [0]
        assert neuron.request_times("/models/n/endpoint") == []
        neuron.models = [model("m", "unloaded")]
        await trio.sleep_until(35)
        assert fleet.replicas("m") == ()
        neuron.models, neuron.inference_url = [model("m")], "http://localhost:9999"
        await trio.sleep_until(55)
        assert neuron.request_times(ENDPOINT_PATH) == [0, 40]
        assert fleet.replicas("m")[0].url == "http://a:9999"


async def test_endpoint_is_asked_again_after_a_restart_and_after_a_failed_connection(autojump_clock):
    """A cached URL is used until then."""
    neuron = FakeNeuron(model("m"))
    async with polling(a=neuron) as (fleet, _):
        neuron.restart()
        await trio.sleep_until(12)
        fleet.missed("a", "request: connection refused")
        await trio.sleep_until(45)
        assert neuron.request_times(ENDPOINT_PATH) == [0, 10, 20]


@pytest.mark.parametrize("how", ["hanging", "failing"])
async def test_failing_endpoint_call_affects_only_its_model(autojump_clock, how):
    """Without a URL the model is not routable; the rest of the poll counts."""
    neuron = FakeNeuron(model("m"), model("n"))
    getattr(neuron, how).add(ENDPOINT_PATH)
    async with polling(a=neuron) as (fleet, _):
        assert fleet.replicas("n")
        assert fleet.replicas("m") == ()
        getattr(neuron, how).clear()
        await trio.sleep_until(11)
        assert fleet.replicas("m")


async def test_poll_soon_polls_once_and_the_interval_begins_anew(autojump_clock):
    """A burst of failed requests causes one poll."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (_, poller):
        await trio.sleep_until(3)
        for _ in range(100):
            poller.poll_soon("a")
        await trio.sleep_until(24)
        assert neuron.request_times("/models") == [0, 3, 13, 23]


async def test_poll_soon_during_a_poll_causes_another_poll(autojump_clock):
    """The answer of the poll under way may be older."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (_, poller):
        neuron.slow_s["/models"] = 2
        await trio.sleep_until(11)
        poller.poll_soon("a")
        await trio.sleep_until(15)
        assert neuron.request_times("/models") == [0, 10, 12]


async def test_endless_poll_soon_calls_cause_few_polls(autojump_clock):
    """At most five per second."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (_, poller):
        for _ in range(100):
            poller.poll_soon("a")
            await trio.sleep(0.01)
        assert len(neuron.request_times("/models")) <= 6


async def test_poll_that_began_before_an_unload_does_not_bring_the_model_back(autojump_clock):
    """Its answer is older than the unload."""
    neuron = FakeNeuron(model("m"))
    async with polling(a=neuron) as (fleet, poller):
        neuron.slow_s["/models"] = 2
        await trio.sleep_until(11)
        fleet.unloading("a", "m")
        neuron.models = []
        fleet.dropped("a", "m")
        poller.poll_soon("a")
        await trio.sleep_until(12.1)
        assert fleet.holders("m") == ()
        await trio.sleep_until(15)
        assert fleet.holders("m") == ()


async def test_poll_that_began_before_a_load_does_not_hide_the_model(autojump_clock):
    """The loaded model stays, and the next poll confirms it."""
    neuron = FakeNeuron()
    async with polling(a=neuron) as (fleet, poller):
        neuron.slow_s["/models"] = 2
        await trio.sleep_until(11)
        neuron.models = [model("m")]
        fleet.loaded("a", a_model("m", url="http://a:8080"))
        poller.poll_soon("a")
        for moment in (12.1, 15):
            await trio.sleep_until(moment)
            assert fleet.replicas("m")[0].url == "http://a:8080"


async def test_log_has_changes_only(autojump_clock):
    """An hour without a change logs nothing."""
    neuron = FakeNeuron(model("m"), model("n"))
    with structlog.testing.capture_logs() as logged:
        async with polling(a=neuron) as (_, _poller):
            await trio.sleep_until(3595)
            neuron.models = [model("m", "recovering")]
            await trio.sleep_until(3605)
            neuron.unreachable = True
            await trio.sleep_until(4000)
    logged = [entry for entry in logged if entry["log_level"] != "debug"]
    changes = [(entry["event"], entry.get("model"), entry.get("status")) for entry in logged]
    assert changes == [
        ("model_seen", "m", "loaded"),
        ("model_seen", "n", "loaded"),
        ("neuron_up", None, None),
        ("status_changed", "m", "recovering"),
        ("model_gone", "n", None),
        ("poll_failed", None, None),
        ("neuron_down", None, None),
    ]
    assert logged[-2]["reason"] == "connection refused", "the first failed poll says why"
    assert (logged[-1]["reason"], logged[-1]["log_level"]) == ("connection refused", "warning")


async def test_a_bug_in_a_poll_stops_the_process_loudly():
    """A gateway must not run on without its poller."""

    class Broken(FakeNeuron):
        def _answer(self, path):
            return super()._answer(path) if path == "/health" else 1 / 0

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with polling(a=Broken()):
            pass


async def test_neuron_that_is_down_is_polled_every_second_and_says_why(autojump_clock):
    """A restarted neuron is served within two seconds."""
    neuron = FakeNeuron(model("m"))
    async with polling(a=neuron) as (fleet, _):
        neuron.unreachable = True
        await trio.sleep_until(32.5)
        assert neuron.request_times("/models") == [0, 10, 20, 30, 31, 32]
        assert fleet.snapshot().nodes[0].failure == "connection refused"
        neuron.unreachable = False
        await trio.sleep_until(33.5)
        assert fleet.replicas("m")
        assert fleet.nodes["a"].failure is None
        await trio.sleep_until(42)
        assert neuron.request_times("/models") == [0, 10, 20, 30, 31, 32, 33], "and then as usual"


@pytest.mark.parametrize("starts_down", [False, True])
async def test_neuron_that_sends_an_answer_is_alive_though_it_misses_polls(autojump_clock, starts_down):
    """A serial engine answers no poll while it streams. Without the stream it goes down."""
    neuron = FakeNeuron(model("m"))
    async with polling(a=neuron) as (fleet, _):
        neuron.hanging.add("/models")
        if starts_down:
            await trio.sleep_until(40)
            assert not fleet.any_healthy()
        phases = PhaseDeadlines(DeadlineSettings())
        with fleet.lease("a", "m", phases):
            for _ in range(20):
                await trio.sleep(8)
                phases.progressed()
            assert fleet.replicas("m"), "a newcomer may be sent there"
            assert fleet.nodes["a"].misses == 0
        await trio.sleep(60)
        assert not fleet.any_healthy()


async def test_silent_request_is_no_sign_of_life(autojump_clock):
    """A request that was sent and got no byte says nothing; nor do the bytes of an earlier attempt elsewhere."""
    neuron = FakeNeuron(model("m"))
    async with polling(a=neuron) as (fleet, _):
        neuron.hanging.add("/models")
        phases = PhaseDeadlines(DeadlineSettings())
        phases.progressed()
        with fleet.lease("a", "m", phases):
            await trio.sleep_until(40)
            assert not fleet.any_healthy()


async def test_neuron_with_thousands_of_loaded_models_takes_a_bounded_part_of_the_gateway(autojump_clock):
    """A few questions at a time, a bounded number of models; the rest is reported. Once it froze the gateway."""
    many, other = FakeNeuron(*[model(f"m{number}") for number in range(3000)]), FakeNeuron(model("m"))
    many.slow_s = {f"/models/m{number}/endpoint": 0.01 for number in range(3000)}
    most = 0

    async def watch():
        nonlocal most
        while True:
            most = max(most, many.running)
            await trio.sleep(0.001)

    with structlog.testing.capture_logs() as logged:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with polling(a=many, b=other) as (fleet, _):
                await trio.sleep_until(12)
                assert most <= URL_QUESTIONS_AT_ONCE + 2
                assert len(fleet.nodes["a"].models) == MODELS_PER_NEURON
                assert fleet.replicas("m0")
                assert fleet.replicas("m")
                assert fleet.snapshot().nodes[0].models_left_out == 3000 - MODELS_PER_NEURON
            nursery.cancel_scope.cancel()
    assert [entry["models"] for entry in logged if entry["event"] == "models_left_out"] == [2000]


async def test_models_beyond_the_bound_are_those_that_take_no_requests(autojump_clock):
    """Whatever the order of the list."""
    idle = [model(f"idle{number}", "unloaded") for number in range(MODELS_PER_NEURON)]
    async with polling(a=FakeNeuron(*idle, model("m"))) as (fleet, _):
        assert fleet.replicas("m")
        assert len(fleet.nodes["a"].models) == MODELS_PER_NEURON
