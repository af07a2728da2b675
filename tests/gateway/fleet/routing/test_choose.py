"""`choose`: its checks one by one, and the order in which nodes are tried for a cold load."""

import time

import pytest
from fakes.fleets import a_catalogue, a_fleet, a_gpu, a_model, a_profile, answers
from fakes.patience import measured

from gateway.errors import ModelNotFound, NoFeasibleNeuron, ServiceUnavailable
from gateway.fleet.reports import ActivationReport
from gateway.fleet.route import Route
from gateway.fleet.routing.choose import ColdLoad, WaitForLoad, WaitForSlot, choose
from gateway.fleet.routing.placement import Candidate, Fit

LISTED = a_catalogue(a_profile("m"))
UNLISTED = a_catalogue()


def refusal(kind, model, fleet, catalogue, **more):
    with pytest.raises(kind) as caught:
        choose(model, fleet, catalogue, **more)
    assert type(caught.value) is kind
    return caught.value


@pytest.mark.parametrize("catalogue", [LISTED, UNLISTED])
@pytest.mark.parametrize("names", [[], ["a"], ["a", "b"]])
def test_step_0_no_healthy_node_comes_before_everything(catalogue, names):
    """Without a healthy node the model does not matter."""
    error = refusal(ServiceUnavailable, "m", a_fleet(*names), catalogue)
    assert "no healthy nodes available" in error.message
    assert (error.status, error.code, error.retry_after_s) == (503, "service_unavailable", 5)


@pytest.mark.parametrize("status", ["loaded", "reloading"])
@pytest.mark.parametrize("catalogue", [LISTED, UNLISTED])
def test_step_1_routable_model_is_routed_whether_catalogued_or_not(status, catalogue):
    """The catalogue does not matter for a model that is loaded."""
    fleet = a_fleet("a", "b")
    answers(fleet, "b", a_model("m", status))
    assert choose("m", fleet, catalogue) == Route("b", "m", "http://x:8080")


def test_step_1_least_busy_wins_and_ties_go_by_name():
    """Requests of others count as last polled, ours at once."""
    fleet = a_fleet("c", "b", "a")
    answers(fleet, "a", a_model("m", in_flight=1, queue_depth=1))
    for name in ("b", "c"):
        answers(fleet, name, a_model("m", in_flight=1))
    assert choose("m", fleet, UNLISTED).node == "b"
    with fleet.lease("b", "m"):
        assert choose("m", fleet, UNLISTED).node == "c"
        with fleet.lease("c", "m"):
            assert choose("m", fleet, UNLISTED).node == "a"


def test_step_1_a_burst_between_two_polls_spreads_evenly():
    """Thirty requests on three idle replicas are ten each, without a poll in between."""
    fleet, leases = a_fleet("a", "b", "c"), []
    for name in "abc":
        answers(fleet, name, a_model("m", in_flight=0))
    for _ in range(30):
        lease = fleet.lease(choose("m", fleet, UNLISTED).node, "m")
        lease.__enter__()
        leases.append(lease)
    assert [node.leases for node in fleet.nodes.values()] == [10, 10, 10]


def test_step_1_excluded_nodes_are_not_asked_again():
    """A retry goes to another node; without another node there is no route."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b", a_model("m"))
    assert choose("m", fleet, UNLISTED, exclude={"a"}).node == "b"
    refusal(ServiceUnavailable, "m", fleet, UNLISTED, exclude={"a", "b"})


def test_step_1_node_at_its_limit_gets_no_request():
    """Requests of others take no slot; when every node is full, the request waits for a slot."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b", a_model("m", in_flight=5))
    with fleet.lease("a", "m"):
        assert choose("m", fleet, LISTED, max_concurrent=2).node == "a"
        assert choose("m", fleet, LISTED, max_concurrent=1).node == "b"
        assert choose("m", fleet, LISTED, max_concurrent=1, exclude={"b"}) == WaitForSlot("m")
        with fleet.lease("b", "m"):
            assert choose("m", fleet, LISTED, max_concurrent=1) == WaitForSlot("m")
            assert choose("m", fleet, LISTED).node == "a"


def test_step_1_model_loaded_from_a_source_is_found_under_the_neurons_name():
    """The body must have the neuron's name for the model, `source:id`."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("ollama:m"))
    assert choose("m", fleet, a_catalogue(a_profile("m", source="ollama"))).model_id == "ollama:m"


def test_step_2_recovering_comes_before_loading():
    """A recovering model is back soon, so Retry-After is short."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m", "recovering"))
    answers(fleet, "b", a_model("m", "loading"))
    assert refusal(ServiceUnavailable, "m", fleet, LISTED).retry_after_s == 2


def test_step_3_loading_is_waited_for_whatever_started_it():
    """A reported load, our own load, and pre-warming."""
    fleet = a_fleet("a", "b", "c", "d")
    answers(fleet, "a", a_model("m", "loading"))
    answers(fleet, "b", activation=ActivationReport("pre_warming", "m"))
    answers(fleet, "c", a_model("m", "unloaded"), activation=ActivationReport("pre_warming", None, ("m",)))
    answers(fleet, "d", a_model("m", "poisoned"), activation=ActivationReport("pre_warming", None, ("m",)))
    assert choose("m", fleet, UNLISTED) == WaitForLoad("m", ("a", "b", "c"))
    fleet.loading("d", "m")
    assert choose("m", fleet, LISTED).nodes == ("a", "b", "c", "d")


def test_step_4_catalogued_model_is_loaded():
    """It is in the catalogue, and a node can hold it."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m", "unloaded"))
    decision = choose("m", fleet, LISTED)
    assert isinstance(decision, ColdLoad)
    assert decision.candidates == (Candidate("a", (0,), Fit.UNKNOWN, 20_000),)


def test_step_4_a_node_that_cannot_serve_what_it_has_is_not_asked_to_load_it():
    """Another load does not make it servable; another node may serve it."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m", servable_ok=False, servable_reason="no KV room"))
    answers(fleet, "b")
    assert [candidate.node for candidate in choose("m", fleet, LISTED).candidates] == ["b"]
    error = refusal(ServiceUnavailable, "m", fleet, LISTED, exclude={"b"})
    assert "no KV room" in error.message


@pytest.mark.parametrize("pinned_on", [(), ("b",)])
def test_step_5_feasible_only_on_an_unhealthy_node(pinned_on):
    """The error is temporary: the node may come back."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", devices=(a_gpu(total_mb=8_000),))
    answers(fleet, "b", devices=(a_gpu(total_mb=80_000),))
    for _ in range(3):
        fleet.missed("b")
    catalogue = a_catalogue(a_profile("m", min_device_vram_mb=70_000, pinned_on=pinned_on))
    error = refusal(ServiceUnavailable, "m", fleet, catalogue)
    assert (error.code, error.retry_after_s) == ("service_unavailable", 3)
    assert "b" in error.message


def test_step_5_a_pin_on_a_node_that_never_answered_may_yet_be_feasible():
    """The topology of a node that never answered is unknown, so the pin decides."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a")
    assert refusal(ServiceUnavailable, "m", fleet, a_catalogue(a_profile("m", pinned_on=("b",)))).retry_after_s == 3


@pytest.mark.parametrize("wants", [{"min_devices": 2}, {"min_device_vram_mb": 48_000}, {"pinned_on": ("elsewhere",)}])
def test_step_6_feasible_nowhere(wants):
    """The error is permanent until the catalogue or the fleet changes."""
    fleet = a_fleet("a", "silent")
    answers(fleet, "a")
    error = refusal(NoFeasibleNeuron, "m", fleet, a_catalogue(a_profile("m", **wants)))
    assert error.message == ("model 'm' is in the catalogue but no healthy neuron's topology satisfies its constraints")
    assert (error.status, error.code) == (503, "no_feasible_neuron")


def test_step_7_unknown_model_is_not_found():
    """404 with the concrete id."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("other"))
    error = refusal(ModelNotFound, "Qwen/Qwen3-8B", fleet, LISTED)
    assert error.message == "model 'Qwen/Qwen3-8B' not found on any node and not in catalogue"
    assert (error.status, error.retry_after_s) == (404, None)


def test_unknown_model_error_names_the_nearest_known_names():
    """Models of the catalogue and of neurons, and aliases."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("org/there-8b"))
    known = a_catalogue(a_profile("org/listed-8b"), aliases={"tiers/small": "org/listed-8b"})
    for name, near in (
        ("org/their-8b", "org/there-8b"),
        ("Listed-8B", "org/listed-8b"),
        ("tiers/smal", "tiers/small"),
    ):
        assert f"; did you mean '{near}'" in refusal(ModelNotFound, name, fleet, known).message


@pytest.mark.parametrize("status", ["unloaded", "poisoned", "some-new-status"])
def test_model_outside_the_catalogue_that_a_node_has_but_cannot_serve_is_a_503(status):
    """A node lists it, so it is not a 404. If it is unloaded, the error says what is missing."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m", status))
    error = refusal(ServiceUnavailable, "m", fleet, UNLISTED)
    assert (error.code, error.retry_after_s) == ("service_unavailable", 5)
    hint = "cortex cannot load it: no [[models]] table in models.toml describes it"
    assert (hint in error.message) == (status == "unloaded")


def test_model_whose_only_node_is_down_is_a_503():
    """A node that is down is not reported as permanent."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b")
    for _ in range(3):
        fleet.missed("a")
    assert refusal(ServiceUnavailable, "m", fleet, UNLISTED).retry_after_s == 5


# Where a cold load goes first .........................................................................................


def order(fleet, catalogue, model="m"):
    return [(candidate.node, candidate.fit) for candidate in choose(model, fleet, catalogue).candidates]


def test_candidates_fit_first_then_after_eviction_then_unknown_then_full():
    """No model is evicted while there is free memory; unknown memory is neither enough nor none."""
    fleet = a_fleet("a-full", "b-unknown", "c-evict", "d-tight", "e-roomy")
    answers(fleet, "a-full", devices=(a_gpu(free_mb=100),))
    answers(fleet, "b-unknown", devices=(a_gpu(free_mb=None),))
    answers(fleet, "c-evict", a_model("old", vram_used_mb=9_000), devices=(a_gpu(free_mb=2_000),))
    answers(fleet, "d-tight", devices=(a_gpu(free_mb=10_000),))
    answers(fleet, "e-roomy", devices=(a_gpu(free_mb=20_000),))
    assert order(fleet, a_catalogue(a_profile("m", vram_mb=10_000))) == [
        ("e-roomy", Fit.FREE),
        ("d-tight", Fit.FREE),
        ("c-evict", Fit.AFTER_EVICTION),
        ("b-unknown", Fit.UNKNOWN),
        ("a-full", Fit.FULL),
    ]


def test_candidates_with_equal_memory_go_by_name():
    """The order is deterministic."""
    fleet = a_fleet("b", "a")
    answers(fleet, "a")
    answers(fleet, "b")
    assert [name for name, _ in order(fleet, LISTED)] == ["a", "b"]


@pytest.mark.parametrize(
    ("mine", "theirs", "fit"),
    [(100, 100, Fit.AFTER_EVICTION), (200, 100, Fit.AFTER_EVICTION), (100, 200, Fit.FULL)],
)
def test_candidates_count_only_models_they_may_displace(mine, theirs, fit):
    """A model displaces models of its own and lower priority."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("old", vram_used_mb=9_000), devices=(a_gpu(free_mb=2_000),))
    wanted = a_profile("m", vram_mb=10_000, residency_priority=mine)
    assert order(fleet, a_catalogue(wanted, a_profile("old", residency_priority=theirs))) == [("a", fit)]


@pytest.mark.parametrize("busy", [{"status": "reloading"}, {"in_flight": 1}, {"status": "loading"}])
def test_candidates_do_not_count_busy_models(busy):
    """Models with requests and models being loaded are not evicted."""
    fleet = a_fleet("a")
    busy_model = a_model("old", **{"status": "loaded", "vram_used_mb": 9_000} | busy)
    answers(fleet, "a", busy_model, devices=(a_gpu(free_mb=2_000),))
    assert order(fleet, a_catalogue(a_profile("m", vram_mb=10_000))) == [("a", Fit.FULL)]


def test_candidates_for_two_devices_need_memory_on_each():
    """Free memory on one GPU does not help the other."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", devices=(a_gpu(0, free_mb=19_000), a_gpu(1, free_mb=1_000)))
    answers(fleet, "b", devices=(a_gpu(0, free_mb=6_000), a_gpu(1, free_mb=6_000)))
    wanted = a_profile("m", vram_mb=11_999, min_devices=2)
    assert order(fleet, a_catalogue(wanted)) == [("b", Fit.FREE), ("a", Fit.FULL)]


@measured
def test_choose_costs_microseconds():
    """It is called once per request; the bound is loose because the machine is shared."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    best = min(_time_one_thousand(fleet) for _ in range(20))
    assert best < 5e-6


def _time_one_thousand(fleet):
    began = time.perf_counter()
    for _ in range(1000):
        choose("m", fleet, LISTED)
    return (time.perf_counter() - began) / 1000
