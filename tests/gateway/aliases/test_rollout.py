"""gateway.aliases.rollout: steps by time and requests, rollback when a guard trips, and restarts."""

import time

import msgspec
import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S
from structlog.testing import capture_logs

from gateway.aliases import rollout
from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.files import rollout_state, toml_edit
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.rollout_state import Rollout, has_targets
from gateway.aliases.rollout import RolloutController
from gateway.aliases.rollout_guards import DEFAULT_ALPHA
from gateway.config.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observation
from gateway.telemetry.request_log import RequestLog

FILE = b'[aliases]\ntier = "A"  # for now\n'


class FakeReadiness:
    """A fleet in which every model can serve, and `cold` has those that must be warmed."""

    def __init__(self):
        self.cold = set()

    def is_servable(self, model, catalogue):
        return True

    def is_proven(self, model, catalogue):
        return model not in self.cold


class RolloutSetup:
    """A rollout controller with a clock that the test sets, and everything it works with."""

    def __init__(self, folder):
        self.models_path = folder / "models.toml"
        self.models_path.write_bytes(FILE)
        self.files = CatalogueFiles.from_settings(Settings(models_config=self.models_path))
        self.now = 1000.0
        self.readiness = FakeReadiness()
        self.start()

    def start(self):
        """A new process starts."""
        self.metrics = Metrics()
        self.request_log = RequestLog(self.metrics, log_requests=False)
        self.store = CatalogueStore(self.models_path, readiness=self.readiness)
        self.store.load_initial()
        self.rollouts = RolloutController(
            self.files,
            self.store,
            watch=self.request_log.watch,
            unwatch=self.request_log.unwatch,
            metrics=self.metrics,
            clock=lambda: self.now,
            monotonic=lambda: self.now,
        )

    def begin(self, **fields):
        data = self.models_path.read_bytes()
        rollout = Rollout(
            **{
                "alias": "tier",
                "target": "B",
                "steps": (5, 50, 100),
                "every_s": 60,
                "guards": {"errors": 0.02, "ttft": 0.25},
                "minimum": 20,
                "who": "anna",
                "started": self.now,
                "before": self.files.history.keep(data),
                "old": {"A": 1.0},
            }
            | fields
        )
        rollout_state.begin(self.files, rollout)

    async def reconcile(self, rounds=4):
        """Run several rounds, since each round does one thing."""
        for _ in range(rounds):
            await self.rollouts._reconcile()

    def requests(self, target, count, *, failed=False, first_token_s=1.0):
        for _ in range(count):
            observation = Observation(
                "tier", target, failed, "upstream 500" if failed else None, first_token_s=first_token_s
            )
            for observer in self.request_log._observers.get("tier", []):
                observer(observation)

    @property
    def state(self):
        return rollout_state.read(self.files)["tier"]

    def has(self, **targets):
        return has_targets(self.store.current.aliases["tier"], targets)


@pytest.fixture
def setup(tmp_path):
    yield RolloutSetup(tmp_path)
    structlog.reset_defaults()


async def test_equal_target_gets_all_requests_in_the_end(setup):
    """Each step ends after its time and its requests."""
    setup.begin()
    await setup.reconcile()
    for share in (5, 50):
        assert setup.has(A=100 - share, B=share)
        setup.requests("A", 400)
        setup.requests("B", 20)
        setup.now += 59
        await setup.reconcile()
        assert setup.has(A=100 - share, B=share)
        setup.now += 1
        await setup.reconcile()

    assert setup.models_path.read_bytes() == FILE.replace(b'"A"', b'"B"')
    assert (setup.state.state, setup.state.reason) == ("done", "B gets all requests")
    assert not setup.request_log.is_watched("tier")
    assert b'cortex_rollout_percent{alias="tier"} 100.0' in setup.metrics.expose()


async def test_alpha_is_divided_among_steps(setup):
    """It is promised for a whole rollout; only steps with both targets count."""
    setup.begin(steps=(5, 50, 100))
    await setup.reconcile()
    setup.requests("A", 1)
    compared_steps, guards = 2, 2

    limit = setup.rollouts._observers["tier"].comparison._trip_at

    assert limit == pytest.approx(guards * compared_steps / DEFAULT_ALPHA)


async def test_step_waits_for_its_requests(setup):
    """A step does not end at night, when there are no requests."""
    setup.begin()
    await setup.reconcile()
    setup.requests("A", 400)
    setup.requests("B", 19)
    setup.now += 3600
    await setup.reconcile()
    assert setup.has(A=95, B=5)
    assert setup.rollouts.views()[0].waits_for == "requests"

    setup.requests("B", 1)
    await setup.reconcile()

    assert setup.has(A=50, B=50)


async def test_failing_target_is_rolled_back_at_the_first_step(setup):
    """To the same bytes, with the figures as the reason."""
    setup.begin()
    await setup.reconcile()
    setup.requests("A", 380)
    setup.requests("B", 20, failed=True)
    with capture_logs() as logs:
        await setup.reconcile()

    assert setup.models_path.read_bytes() == FILE
    assert setup.has(A=1)
    assert setup.state.state == "rolled_back"
    assert setup.state.reason.startswith(
        "errors: 20 of 20 requests failed at B (most often: upstream 500), 0 of 380 at A"
    )
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["event"].startswith("rollout")] == [
        ("rollout_rolled_back", "warning")
    ]
    assert b'cortex_rollout_percent{alias="tier"} 0.0' in setup.metrics.expose()


async def test_slow_target_is_rolled_back_by_the_first_token_guard(setup):
    """It has no errors."""
    setup.begin()
    await setup.reconcile()
    setup.requests("A", 380)
    setup.requests("B", 20, first_token_s=9.0)
    await setup.reconcile()

    assert setup.state.reason.startswith("ttft: p95 of the time to the first token is 9 s at B, 1 s at A")
    assert setup.models_path.read_bytes() == FILE


async def test_guard_does_not_wait_for_the_end_of_the_step(setup):
    """A failing target is rolled back at once."""
    setup.begin(every_s=36_000)
    await setup.reconcile()
    setup.requests("A", 100)
    setup.requests("B", 20, failed=True)
    await setup.reconcile(1)

    assert setup.state.state == "rolled_back"


async def test_step_begins_when_its_target_is_warm(setup):
    """Until then the alias keeps its old targets, and the clock does not run."""
    setup.readiness.cold = {"B"}
    setup.begin()
    await setup.reconcile()
    setup.now += 500
    await setup.reconcile()
    assert setup.state.since is None
    assert setup.rollouts.views()[0].waits_for == "the step to be in force"

    setup.store.move("tier")
    await setup.reconcile()

    assert (setup.state.step, setup.state.since) == (0, 1500.0)


async def test_target_that_cannot_be_warmed_is_rolled_back(setup):
    """With the swap's reason."""
    setup.readiness.cold = {"B"}
    setup.begin()
    await setup.reconcile()
    setup.store.give_up("tier", "no neuron has room")
    await setup.reconcile()

    assert (setup.state.state, setup.state.reason) == ("rolled_back", "B could not be warmed: no neuron has room")
    assert setup.models_path.read_bytes() == FILE
    assert setup.store.current.warming == {}


async def test_restart_goes_on_with_step_and_clock(setup):
    """The requests are counted again; the step and its time are kept."""
    setup.begin()
    await setup.reconcile()
    setup.requests("A", 400)
    setup.requests("B", 19)
    setup.now += 50
    await setup.reconcile()

    setup.start()
    await setup.reconcile()
    assert setup.rollouts.views()[0].requests_new == 0
    assert setup.rollouts.views()[0].elapsed_s == 50
    setup.requests("A", 400)
    setup.requests("B", 20)
    setup.now += 10
    await setup.reconcile()

    assert setup.has(A=50, B=50)


async def test_restart_between_state_and_file_writes_the_step(setup, monkeypatch):
    """The step was stored and not written to the file."""
    setup.begin()
    await setup.reconcile()
    state = msgspec.structs.replace(setup.state, step=1, since=None)
    rollout_state._store(setup.files, state)

    setup.start()
    await setup.reconcile()

    assert setup.has(A=50, B=50)
    assert setup.state.since == setup.now


async def test_restart_before_the_rollback_rolls_back(setup):
    """A decided rollback is not forgotten."""
    setup.begin()
    await setup.reconcile()
    rollout_state._store(
        setup.files, msgspec.structs.replace(setup.state, ending="rolled_back", reason="errors: too many")
    )

    setup.start()
    await setup.reconcile()

    assert setup.models_path.read_bytes() == FILE
    assert (setup.state.state, setup.state.reason) == ("rolled_back", "errors: too many")


async def test_edit_of_the_alias_supersedes_the_rollout(setup):
    """The edited file stays as it is."""
    setup.begin()
    await setup.reconcile()
    edited = toml_edit.set_alias(FILE, "tier", {"C": 1})
    setup.models_path.write_bytes(edited)
    await setup.store.reload()
    await setup.reconcile()

    assert (setup.state.state, setup.state.reason) == ("superseded", "another edit changed the alias")
    assert setup.models_path.read_bytes() == edited
    assert not setup.request_log.is_watched("tier")


async def test_abort_from_a_shell_is_noticed(setup):
    """The controller stops observing requests."""
    setup.begin()
    await setup.reconcile()
    setup.requests("B", 5)
    rollout_state.end(setup.files, setup.state, "aborted", "by anna", setup.now)
    await setup.reconcile()

    assert setup.rollouts.views() == []
    assert not setup.request_log.is_watched("tier")


async def test_last_step_may_be_below_100_percent(setup):
    """It lasts its time under guard, and the weights stay."""
    setup.begin(steps=(10,))
    await setup.reconcile()
    setup.requests("A", 400)
    setup.requests("B", 20)
    setup.now += 60
    await setup.reconcile()

    assert (setup.state.state, setup.state.reason) == ("done", "B gets 10 %, as in the last step")
    assert setup.has(A=90, B=10)


async def test_without_guards_time_is_enough(setup):
    """Without guards and without a minimum, only the time counts."""
    setup.begin(guards={}, minimum=0)
    await setup.reconcile()
    for _ in range(2):
        setup.now += 60
        await setup.reconcile()

    assert setup.state.state == "done"


async def test_faulty_file_stops_the_rollout_until_it_is_repaired(setup):
    """It is logged once, and nothing is overwritten."""
    setup.begin()
    await setup.reconcile()
    good = setup.models_path.read_bytes()
    setup.models_path.write_bytes(b"[aliases\n")
    setup.requests("A", 400)
    setup.requests("B", 20)
    setup.now += 60
    with capture_logs() as logs:
        await setup.reconcile()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["rollout_stuck"]
    assert setup.models_path.read_bytes() == b"[aliases\n"
    assert setup.rollouts.views()[0].waits_for.startswith("a retry after an error: ")

    setup.models_path.write_bytes(good)
    await setup.reconcile()

    assert setup.has(A=50, B=50)


async def test_invalid_state_file_stops_all_rollouts(setup):
    """It is logged once."""
    setup.files.rollouts_path.write_text("{")
    with capture_logs() as logs:
        await setup.reconcile()

    assert [entry["event"] for entry in logs] == ["rollout_stuck"]


async def test_rollouts_of_two_aliases_are_independent(setup):
    """Each has its clock and its requests."""
    setup.models_path.write_bytes(FILE + b'other = "A"\n')
    await setup.store.reload()
    setup.begin()
    setup.begin(alias="other", guards={}, minimum=0)
    await setup.reconcile()
    setup.now += 60
    await setup.reconcile()

    states = rollout_state.read(setup.files)
    assert (states["tier"].step, states["other"].step) == (0, 1)


async def test_task_reconciles_and_leaves_no_observer(setup, nursery):
    """It starts the stored rollouts, and stops observing when it is cancelled."""
    setup.begin()
    with trio.fail_after(SAFETY_NET_S):
        async with trio.open_nursery() as inner:
            await inner.start(setup.rollouts.run)
            while not setup.request_log.is_watched("tier"):
                await trio.sleep(0.05)
            inner.cancel_scope.cancel()

    assert not setup.request_log.is_watched("tier")


# Rollbacks that are not acknowledged, and the clock.


async def rolled_back(setup):
    """A rollout whose new target fails every request."""
    setup.begin()
    await setup.reconcile()
    setup.requests("A", 200)
    setup.requests("B", 200, failed=True)
    await setup.reconcile()
    assert setup.state.state == "rolled_back"
    assert [rollout.alias for rollout in setup.rollouts.unacknowledged()] == ["tier"]


async def test_rollback_is_reported_until_it_is_acknowledged(setup):
    """Across a restart as well; the acknowledgement is stored."""
    await rolled_back(setup)
    shown = setup.rollouts.by_alias()["tier"]
    assert (shown["state"], shown["target"]) == ("rolled_back", "B")
    assert "requests failed at B" in shown["reason"]
    setup.start()
    await setup.reconcile()
    assert setup.rollouts.unacknowledged()

    assert rollout_state.acknowledge(setup.files, "tier", 5.0).acknowledged == 5.0
    assert rollout_state.acknowledge(setup.files, "tier", 6.0) is None
    await setup.reconcile()
    assert setup.rollouts.unacknowledged() == []
    assert setup.rollouts.by_alias() == {}


@pytest.mark.parametrize(
    "edit", [b'[aliases]\ntier = "C"\n', b"[aliases]\n", b'[aliases]\ntier = { target = "A", echo = "alias" }\n']
)
async def test_edit_of_the_alias_acknowledges_its_rollback(setup, edit):
    """At once, and in the stored state; the rollback's own edit does not count."""
    await rolled_back(setup)
    setup.models_path.write_bytes(edit)
    await setup.store.reload()
    assert setup.rollouts.unacknowledged() == []
    await setup.reconcile()
    assert setup.state.acknowledged is not None


async def test_edit_of_something_else_does_not_acknowledge_a_rollback(setup):
    await rolled_back(setup)
    setup.models_path.write_bytes(FILE + b'other = "B"\n')
    await setup.store.reload()
    await setup.reconcile()
    assert setup.rollouts.unacknowledged()


async def test_edit_while_no_gateway_runs_acknowledges_a_rollback(setup, nursery):
    await rolled_back(setup)
    setup.models_path.write_bytes(b'[aliases]\ntier = "C"\n')
    setup.start()
    await nursery.start(setup.rollouts.run)
    assert setup.rollouts.unacknowledged() == []


async def test_new_rollout_replaces_the_rollback(setup):
    await rolled_back(setup)
    setup.begin(target="C")
    await setup.reconcile()
    assert setup.rollouts.unacknowledged() == []
    assert setup.rollouts.by_alias()["tier"]["state"] == "running"


@pytest.mark.parametrize("jump_s", [-86_400, 86_400])
async def test_clock_that_is_set_neither_stalls_nor_ends_a_step(setup, jump_s):
    """The time of a step is monotonic: only the time before this process saw it is read from the system's clock."""
    elapsed_s = 0.0
    setup.rollouts._monotonic = lambda: elapsed_s
    setup.begin(guards={}, minimum=0)
    await setup.reconcile()
    assert setup.rollouts.views()[0].elapsed_s == 0
    setup.now += jump_s
    elapsed_s = 59.0
    await setup.reconcile()
    assert (setup.state.step, setup.rollouts.views()[0].elapsed_s) == (0, 59)
    elapsed_s = 60.0
    await setup.reconcile()
    assert setup.state.step == 1


async def test_view_has_the_distance_of_each_guard(setup):
    """1 without evidence, and less with every bad block."""
    setup.begin()
    await setup.reconcile()
    assert setup.rollouts.views()[0].guards == {"errors": 1.0, "ttft": 1.0}
    setup.requests("A", 10)
    setup.requests("B", 10, failed=True)
    distances = setup.rollouts.views()[0].guards
    assert 0 <= distances["errors"] < 1
    assert distances["ttft"] == 1.0


async def test_file_that_does_not_answer_is_an_error_and_not_silence(setup, monkeypatch, autojump_clock):
    """A hung mount: the rollout waits, and says for what."""
    monkeypatch.setattr(rollout, "FILE_DEADLINE_S", 0.05)
    monkeypatch.setattr(rollout_state, "file_stamp", lambda _: time.sleep(0.3))
    with capture_logs() as logs:
        await setup.rollouts._reconcile()
    assert setup.rollouts.error == "a file was not read or written within 0.05 s"
    assert [entry["event"] for entry in logs] == ["rollout_stuck"]
