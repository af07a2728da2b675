"""gateway.aliases.rollout: steps by the clock and by requests, rollback when a guard trips, and restarts."""

import msgspec
import pytest
import structlog
import trio
from fakes.patience import SAFETY_NET_S
from structlog.testing import capture_logs

from gateway.aliases.catalogue_store import CatalogueStore
from gateway.aliases.files import rollout_state, toml_edit
from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.aliases.files.rollout_state import Rollout, has_targets
from gateway.aliases.rollout import RolloutController
from gateway.aliases.rollout_guards import DEFAULT_ALPHA
from gateway.config.settings import Settings
from gateway.telemetry.metrics import Metrics
from gateway.telemetry.observation import Observation
from gateway.telemetry.request_log import Accounts

FILE = b'[aliases]\ntier = "A"  # for now\n'


class Readiness:
    """What a fleet would say of a model."""

    def __init__(self):
        self.cold = set()

    def is_servable(self, model, catalogue):
        return True

    def is_proven(self, model, catalogue):
        return model not in self.cold


class House:
    """A gateway's part in rollouts, its clock in our hands, and everything it works with."""

    def __init__(self, folder):
        self.models = folder / "models.toml"
        self.models.write_bytes(FILE)
        self.files = CatalogueFiles.from_settings(Settings(models_config=self.models))
        self.now = 1000.0
        self.readiness = Readiness()
        self.start()

    def start(self):
        """A process begins."""
        self.metrics = Metrics()
        self.accounts = Accounts(self.metrics, log_requests=False)
        self.keeper = CatalogueStore(self.models, readiness=self.readiness)
        self.keeper.load_initial()
        self.rollouts = RolloutController(
            self.files,
            keeper=self.keeper,
            watchable=self.accounts,
            metrics=self.metrics,
            clock=lambda: self.now,
        )

    def begin(self, **how):
        data = self.models.read_bytes()
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
            | how
        )
        rollout_state.begin(self.files, rollout)

    async def look(self, rounds=4):
        """As the task does once a second; several times, as each round does one thing."""
        for _ in range(rounds):
            await self.rollouts._look()

    def requests(self, target, count, *, failed=False, first_token_s=1.0):
        for _ in range(count):
            seen = Observation("tier", target, failed, "upstream 500" if failed else None, first_token_s=first_token_s)
            for observer in self.accounts._observers.get("tier", []):
                observer(seen)

    @property
    def state(self):
        return rollout_state.read(self.files)["tier"]

    def has(self, **targets):
        return has_targets(self.keeper.current.aliases["tier"], targets)


@pytest.fixture
def house(tmp_path):
    yield House(tmp_path)
    structlog.reset_defaults()


async def test_equal_target_goes_all_the_way(house):
    """Each step after its time and its requests; the end is the new target alone."""
    house.begin()
    await house.look()
    for share in (5, 50):
        assert house.has(A=100 - share, B=share)
        house.requests("A", 400)
        house.requests("B", 20)
        house.now += 59
        await house.look()
        assert house.has(A=100 - share, B=share)
        house.now += 1
        await house.look()

    assert house.models.read_bytes() == FILE.replace(b'"A"', b'"B"')
    assert (house.state.state, house.state.reason) == ("done", "B has every request")
    assert not house.accounts.is_watched("tier")
    assert b'cortex_rollout_percent{alias="tier"} 100.0' in house.metrics.expose()


async def test_steps_share_the_chance_of_a_false_alarm(house):
    """What is promised is of a whole rollout: each step that compares gets its part."""
    house.begin(steps=(5, 50, 100))
    await house.look()
    house.requests("A", 1)
    compared_steps, guards = 2, 2

    limit = house.rollouts._watches["tier"].comparison._limit

    assert limit == pytest.approx(guards * compared_steps / DEFAULT_ALPHA)


async def test_step_waits_for_its_requests(house):
    """Time alone proves nothing: at night nobody asks."""
    house.begin()
    await house.look()
    house.requests("A", 400)
    house.requests("B", 19)
    house.now += 3600
    await house.look()
    assert house.has(A=95, B=5)
    assert house.rollouts.views()[0].waits_for == "requests"

    house.requests("B", 1)
    await house.look()

    assert house.has(A=50, B=50)


async def test_failing_target_is_rolled_back_at_the_first_step(house):
    """By itself, with the figure that did it, to the same bytes."""
    house.begin()
    await house.look()
    house.requests("A", 380)
    house.requests("B", 20, failed=True)
    with capture_logs() as logs:
        await house.look()

    assert house.models.read_bytes() == FILE
    assert house.has(A=1)
    assert house.state.state == "rolled_back"
    assert house.state.reason.startswith(
        "errors: 20 of 20 requests failed at B (most often: upstream 500), 0 of 380 at A"
    )
    assert [(entry["event"], entry["log_level"]) for entry in logs if entry["event"].startswith("rollout")] == [
        ("rollout_rolled_back", "warning")
    ]
    assert b'cortex_rollout_percent{alias="tier"} 0.0' in house.metrics.expose()


async def test_slow_target_is_rolled_back_for_being_slow(house):
    """Not for its errors, of which it has none."""
    house.begin()
    await house.look()
    house.requests("A", 380)
    house.requests("B", 20, first_token_s=9.0)
    await house.look()

    assert house.state.reason.startswith("ttft: p95 of the time to the first token is 9 s at B, 1 s at A")
    assert house.models.read_bytes() == FILE


async def test_guard_does_not_wait_for_the_end_of_the_step(house):
    """Who fails is taken out at once."""
    house.begin(every_s=36_000)
    await house.look()
    house.requests("A", 100)
    house.requests("B", 20, failed=True)
    await house.look(1)

    assert house.state.state == "rolled_back"


async def test_step_begins_when_its_target_is_warm(house):
    """The alias is held back until then, and the clock with it."""
    house.readiness.cold = {"B"}
    house.begin()
    await house.look()
    house.now += 500
    await house.look()
    assert house.state.since is None
    assert house.rollouts.views()[0].waits_for == "the step to be in force"

    house.keeper.move("tier")
    await house.look()

    assert (house.state.step, house.state.since) == (0, 1500.0)


async def test_target_that_cannot_be_warmed_is_rolled_back(house):
    """With the reason of whoever tried."""
    house.readiness.cold = {"B"}
    house.begin()
    await house.look()
    house.keeper.give_up("tier", "no neuron has room")
    await house.look()

    assert (house.state.state, house.state.reason) == ("rolled_back", "B could not be warmed: no neuron has room")
    assert house.models.read_bytes() == FILE
    assert house.keeper.current.warming == {}


async def test_restart_goes_on_with_step_and_clock(house):
    """What was counted is counted anew; what was reached is kept."""
    house.begin()
    await house.look()
    house.requests("A", 400)
    house.requests("B", 19)
    house.now += 50
    await house.look()

    house.start()
    await house.look()
    assert house.rollouts.views()[0].requests_new == 0
    assert house.rollouts.views()[0].elapsed_s == 50
    house.requests("A", 400)
    house.requests("B", 20)
    house.now += 10
    await house.look()

    assert house.has(A=50, B=50)


async def test_restart_between_state_and_file_goes_on(house, monkeypatch):
    """The step was written down and not done."""
    house.begin()
    await house.look()
    state = msgspec.structs.replace(house.state, step=1, since=None)
    rollout_state._store(house.files, state)

    house.start()
    await house.look()

    assert house.has(A=50, B=50)
    assert house.state.since == house.now


async def test_restart_before_the_way_back_goes_back(house):
    """A trip that was decided upon is not forgotten."""
    house.begin()
    await house.look()
    rollout_state._store(
        house.files, msgspec.structs.replace(house.state, ending="rolled_back", reason="errors: too many")
    )

    house.start()
    await house.look()

    assert house.models.read_bytes() == FILE
    assert (house.state.state, house.state.reason) == ("rolled_back", "errors: too many")


async def test_edit_of_the_alias_ends_it(house):
    """The file is the truth, and stays as it was edited."""
    house.begin()
    await house.look()
    edited = toml_edit.set_alias(FILE, "tier", {"C": 1})
    house.models.write_bytes(edited)
    await house.keeper.reload()
    await house.look()

    assert (house.state.state, house.state.reason) == ("superseded", "another edit changed the alias")
    assert house.models.read_bytes() == edited
    assert not house.accounts.is_watched("tier")


async def test_abort_from_a_shell_is_noticed(house):
    """Whoever holds the lock may end it; the gateway drops what it was counting."""
    house.begin()
    await house.look()
    house.requests("B", 5)
    rollout_state.end(house.files, house.state, "aborted", "by anna", house.now)
    await house.look()

    assert house.rollouts.views() == []
    assert not house.accounts.is_watched("tier")


async def test_last_step_may_be_less_than_everything(house):
    """Then it lasts its time under guard, and the rest stays."""
    house.begin(steps=(10,))
    await house.look()
    house.requests("A", 400)
    house.requests("B", 20)
    house.now += 60
    await house.look()

    assert (house.state.state, house.state.reason) == ("done", "B has 10 %, as the last step says")
    assert house.has(A=90, B=10)


async def test_without_guards_time_is_enough(house):
    """Who wants neither figures nor requests says so."""
    house.begin(guards={}, minimum=0)
    await house.look()
    for _ in range(2):
        house.now += 60
        await house.look()

    assert house.state.state == "done"


async def test_broken_file_is_trouble_that_is_told_once_and_waited_out(house):
    """A bad edit by somebody else in the middle: nothing is overwritten, and afterwards it goes on."""
    house.begin()
    await house.look()
    good = house.models.read_bytes()
    house.models.write_bytes(b"[aliases\n")
    house.requests("A", 400)
    house.requests("B", 20)
    house.now += 60
    with capture_logs() as logs:
        await house.look()
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["rollout_stuck"]
    assert house.models.read_bytes() == b"[aliases\n"
    assert house.rollouts.views()[0].waits_for.startswith("trouble: ")

    house.models.write_bytes(good)
    await house.look()

    assert house.has(A=50, B=50)


async def test_unreadable_state_drives_nothing(house):
    """And is told once."""
    house.files.rollouts_path.write_text("{")
    with capture_logs() as logs:
        await house.look()

    assert [entry["event"] for entry in logs] == ["rollout_stuck"]


async def test_two_rollouts_do_not_mind_each_other(house):
    """Each has its alias, its clock and its requests."""
    house.models.write_bytes(FILE + b'other = "A"\n')
    await house.keeper.reload()
    house.begin()
    house.begin(alias="other", guards={}, minimum=0)
    await house.look()
    house.now += 60
    await house.look()

    states = rollout_state.read(house.files)
    assert (states["tier"].step, states["other"].step) == (0, 1)


async def test_task_looks_by_itself_and_leaves_nothing(house, nursery):
    """Started with what is written down; ended without an observer left."""
    house.begin()
    with trio.fail_after(SAFETY_NET_S):
        async with trio.open_nursery() as inner:
            await inner.start(house.rollouts.run)
            while not house.accounts.is_watched("tier"):
                await trio.sleep(0.05)
            inner.cancel_scope.cancel()

    assert not house.accounts.is_watched("tier")
