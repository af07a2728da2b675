"""The body of `/health`, which problems it lists, and what can be served."""

import pytest
import structlog
import trio
from fakes.fleets import Clock, a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers
from structlog.testing import capture_logs

from catalogue.models import Alias, Target
from catalogue.warming import given_up, hold_back
from gateway.aliases.files.rollout_state import Rollout
from gateway.aliases.warm_swap import SwapView
from gateway.fleet.loading.backoff import FailedLoadView
from gateway.fleet.reports import NodeReport
from gateway.server.health.body import health_body
from gateway.server.health.problems import HealthProblem, ProblemList, find_problems
from gateway.server.health.servability import Servability

GOOD = {"generation": 3, "digest": None, "loaded_at": 1.5, "path": "/etc/m.toml", "error": None}
BAD = GOOD | {"error": {"message": "unknown key"}}
AUDIT = {
    "path": "/s/audit",
    "last": 1,
    "hash": "",
    "pending": 0,
    "lost": 0,
    "error": None,
    "history": "/s/history",
    "history_error": None,
}


class Setting:
    """Neurons a and b, of which a holds m; a catalogue with m and an alias of it; everything else is well."""

    def __init__(self, **reported):
        self.clock = Clock()
        self.fleet = a_fleet("a", "b", clock=self.clock)
        answers(self.fleet, "a", a_model("m", **reported))
        answers(self.fleet, "b")
        self.catalogue = a_catalogue(a_profile("m", pinned_on=("a",)), aliases={"tier": "m"})
        self.status, self.audit = GOOD, AUDIT
        self.swaps, self.rolled_back, self.unwritable, self.failed_loads = [], [], [], []
        self.servability = Servability(
            self.fleet, catalogue=lambda: self.catalogue, failed_loads=lambda: self.failed_loads
        )

    def down(self, *names, reason="connection refused"):
        for name in names:
            for _ in range(3):
                self.fleet.missed(name, reason)

    def problems(self):
        return list(
            find_problems(
                self.fleet,
                self.servability,
                catalogue=self.status,
                swaps=self.swaps,
                rolled_back=self.rolled_back,
                audit=self.audit,
                unwritable=self.unwritable,
            )
        )

    def health(self, **more):
        problems = ProblemList(self.problems, unix_time=lambda: 7.0).as_json()
        return health_body(
            self.fleet, self.catalogue, self.status, problems=problems, servability=self.servability, **more
        )

    def codes(self):
        return [(problem.code, problem.subject) for problem in self.problems()]


@pytest.mark.parametrize(
    ("down", "servable", "catalogue", "status"),
    [
        ((), True, GOOD, "ok"),
        ((), False, GOOD, "degraded"),
        ((), True, BAD, "impaired"),
        (("b",), True, GOOD, "impaired"),
        (("a", "b"), True, GOOD, "degraded"),
        (("a", "b"), False, BAD, "degraded"),
    ],
)
def test_status_is_the_worst_that_applies(down, servable, catalogue, status):
    """Nothing can be served: degraded. Any problem: impaired."""
    setting = Setting(servable_ok=servable, servable_reason=None if servable else "no room")
    setting.status = catalogue
    setting.down(*down)
    body = setting.health()
    assert body["status"] == status
    assert body["nodes"] == {"healthy": 2 - len(down), "total": 2, "drained": 0}
    assert body["catalogue"] == catalogue
    named = [{"node": "a", "model": "m", "reason": "no room"}]
    assert body.get("unservable") == (named if "a" not in down and not servable else None)


def test_everything_well_is_no_problem():
    """The alias has its targets and no rollout."""
    body = Setting().health()
    assert body["problems"] == []
    assert body["aliases"] == [
        {"name": "tier", "targets": [{"model": "m", "weight": 1.0}], "state": "ok", "rollout": None}
    ]


def test_empty_gateway_can_serve_what_it_has():
    """A neuron without models and no catalogue: nothing is missing."""
    setting = Setting()
    setting.catalogue = a_catalogue()
    answers(setting.fleet, "a")
    assert setting.health()["status"] == "ok"


def test_gateway_without_neurons_is_degraded():
    setting = Setting()
    setting.fleet.nodes.clear()
    assert setting.health()["status"] == "degraded"


def test_neuron_that_is_down_is_a_problem_with_its_reason():
    setting = Setting()
    setting.down("b", reason="connection refused")
    assert setting.problems() == [HealthProblem("node_down", "b", "http://b:13131 is down: connection refused")]


def test_what_only_a_down_neuron_has_cannot_be_served():
    """The model, and the alias that points at it."""
    setting = Setting()
    setting.down("a")
    assert setting.codes() == [("node_down", "a"), ("alias_unservable", "tier"), ("model_unservable", "m")]
    assert setting.health()["aliases"][0]["state"] == "unservable"


def test_drained_neurons_cannot_serve():
    """All drained: degraded, and each is listed."""
    setting = Setting()
    for name in ("a", "b"):
        setting.fleet.drain(name, draining=True)
    body = setting.health()
    assert body["status"] == "degraded"
    assert body["nodes"] == {"healthy": 2, "total": 2, "drained": 2}
    assert setting.codes()[:2] == [("node_drained", "a"), ("node_drained", "b")]
    assert not setting.fleet.any_open()


@pytest.mark.parametrize(
    ("targets", "fallback", "state", "text"),
    [
        (("lost",), (), "unservable", "model 'lost' not found on any node and not in catalogue"),
        (("m", "lost"), (), "impaired", "model 'lost' not found"),
        (("lost",), ("m",), "impaired", "its requests fall back to m"),
        (("lost",), ("gone",), "unservable", "model 'lost' not found"),
    ],
)
def test_alias_with_an_unknown_target_is_a_problem(targets, fallback, state, text):
    """Also if another target or a fallback can serve: the operator meant something else."""
    setting = Setting()
    alias = Alias("tier", tuple(Target(model) for model in targets), fallback=fallback)
    setting.catalogue = a_catalogue(a_profile("m"), aliases={})
    object.__setattr__(setting.catalogue, "aliases", {"tier": alias})
    [problem] = setting.problems()
    assert (problem.code, problem.subject) == ("alias_unservable", "tier")
    assert text in problem.text
    body = setting.health()
    assert (body["status"], body["aliases"][0]["state"]) == ("impaired", state)


def test_target_without_weight_needs_no_neuron():
    """It gets no requests."""
    setting = Setting()
    alias = Alias("tier", (Target("m"), Target("lost", 0.0)))
    object.__setattr__(setting.catalogue, "aliases", {"tier": alias})
    assert setting.problems() == []


def test_model_that_fits_nowhere_is_a_problem():
    setting = Setting()
    setting.catalogue = a_catalogue(a_profile("m"), a_profile("huge", min_device_vram_mb=99_000))
    assert setting.codes() == [("model_unservable", "huge")]


def test_model_whose_loads_fail_is_a_problem_until_the_next_try():
    """On every neuron that could hold it; while one is not tried yet, it can be served."""
    setting = Setting()
    setting.catalogue = a_catalogue(a_profile("cold"))
    for name in ("a", "b"):
        assert setting.codes() == []
        setting.failed_loads.append(FailedLoadView(name, "cold", 1, "out of memory", 5.0))
        setting.clock.now += 1.0
    [problem] = setting.problems()
    assert (problem.code, problem.subject) == ("model_unservable", "cold")
    assert "a: out of memory; b: out of memory" in problem.text
    setting.failed_loads.clear()
    setting.clock.now += 1.0
    assert setting.codes() == []


def test_unservable_model_is_a_problem_although_another_neuron_serves_it():
    setting = Setting()
    setting.fleet.answered(
        "b", NodeReport((a_model("m", servable_ok=False, servable_reason="no room"),), devices=(a_gpu(),))
    )
    [problem] = setting.problems()
    assert (problem.code, problem.subject) == ("model_unservable", "m")
    assert problem.text == "b holds it and cannot serve it: no room"
    assert setting.health()["status"] == "impaired"


def rolled_back(**fields):
    common = {"steps": (5, 100), "every_s": 1, "guards": {}, "minimum": 0, "who": "anna", "started": 1.0, "before": "x"}
    return Rollout(
        **common, alias="tier", target="n", old={"m": 1.0}, state="rolled_back", reason="errors: 3 of 4", **fields
    )


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (
            {"status": BAD},
            HealthProblem("file_not_in_force", "/etc/m.toml", "generation 3 stays in force: unknown key"),
        ),
        (
            {"swaps": [SwapView("tier", "m", "n", "failed", reason="out of memory")]},
            HealthProblem("swap_failed", "tier", "stays on m: n could not be warmed: out of memory"),
        ),
        (
            {"rolled_back": [rolled_back()]},
            HealthProblem("rollout_rolled_back", "tier", "the rollout to n was rolled back: errors: 3 of 4"),
        ),
        (
            {"audit": AUDIT | {"error": "disk full", "pending": 2, "lost": 1}},
            HealthProblem("audit_unwritable", "/s/audit", "disk full; 2 lines wait to be written, 1 are lost"),
        ),
        (
            {"audit": AUDIT | {"history_error": "disk full"}},
            HealthProblem(
                "history_unwritable", "/s/history", "disk full; a rollback to the file in force is not possible"
            ),
        ),
        (
            {"unwritable": [("/s/drains.json", "disk full")]},
            HealthProblem("history_unwritable", "/s/drains.json", "disk full"),
        ),
    ],
)  # fmt: skip
def test_each_problem_impairs(change, problem):
    setting = Setting()
    for name, value in change.items():
        setattr(setting, name, value)
    assert setting.problems() == [problem]
    assert setting.health()["status"] == "impaired"


def test_swap_that_is_warming_is_no_problem():
    setting = Setting()
    setting.swaps = [SwapView("tier", "m", "n", "warming")]
    assert setting.problems() == []


class Cold:
    """Nothing new is proven, and everything old serves."""

    def is_servable(self, model, catalogue):
        return True

    def is_proven(self, model, catalogue):
        return False


def test_alias_shows_the_targets_in_force_while_it_is_warming():
    """And its state: warming, or that it failed."""
    setting = Setting()
    wanted = a_catalogue(a_profile("m"), a_profile("n"), aliases={"tier": "n"})
    setting.catalogue = hold_back(wanted, setting.catalogue, Cold())
    [alias] = setting.health()["aliases"]
    assert (alias["targets"], alias["state"]) == ([{"model": "m", "weight": 1.0}], "warming")
    setting.catalogue = given_up(setting.catalogue, "tier", "out of memory")
    assert setting.health()["aliases"][0]["state"] == "swap_failed"


def test_alias_shows_its_rollout():
    rollout = {"state": "running", "target": "n"}
    [alias] = Setting().health(rollouts={"tier": rollout})["aliases"]
    assert alias["rollout"] == rollout


def test_problem_keeps_the_time_at_which_it_began():
    """Whatever its text becomes; one that comes back begins again. The log has both ends, as warnings."""
    now, found = 100.0, [HealthProblem("node_down", "a", "refused")]
    problems = ProblemList(lambda: found, unix_time=lambda: now)
    with capture_logs() as logs:
        assert problems.current() == [HealthProblem("node_down", "a", "refused", 100.0)]
        now, found = 110.0, [HealthProblem("node_down", "a", "timeout")]
        assert problems.current() == [HealthProblem("node_down", "a", "timeout", 100.0)]
        now, found = 130.0, []
        assert problems.current() == []
        found = [HealthProblem("node_down", "a", "timeout")]
        assert problems.current()[0].since == 130.0
    structlog.reset_defaults()
    assert [(entry["event"], entry["log_level"], entry.get("lasted_s")) for entry in logs] == [
        ("problem", "warning", None),
        ("problem_over", "warning", 30.0),
        ("problem", "warning", None),
    ]


async def test_problem_begins_when_it_begins_and_not_when_somebody_asks(autojump_clock, nursery):
    found = []
    problems = ProblemList(lambda: found, unix_time=trio.current_time)
    await nursery.start(problems.run)
    await trio.sleep(10.5)
    found.append(HealthProblem("node_down", "a", "refused"))
    began_at = trio.current_time()
    await trio.sleep(60)
    assert problems.current()[0].since == pytest.approx(began_at, abs=1.0)
