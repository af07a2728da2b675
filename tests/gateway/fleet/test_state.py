"""The fleet: misses, leases, the index of replicas, and own changes that are newer than a poll."""

import pytest
import trio
from fakes.fleets import Clock, a_fleet, a_gpu, a_model, answers, assert_idle, where

from gateway.fleet.circuit_breaker import FAILURES
from gateway.fleet.reports import ActivationReport, NodeReport


def test_node_is_unhealthy_until_it_first_answers():
    """A neuron that never answered gets no requests."""
    fleet = a_fleet("a")
    assert not fleet.any_healthy()
    answers(fleet, "a")
    assert fleet.any_healthy()
    assert fleet.nodes["a"].ever_answered


def test_node_is_down_after_three_misses_in_a_row_and_up_after_one_answer():
    """The outage is announced once, with the first reason."""
    fleet, seen = a_fleet("a"), []
    fleet.observers.append(seen.append)
    answers(fleet, "a", a_model("m"))
    for misses in (1, 2):
        fleet.missed("a")
        assert fleet.nodes["a"].misses == misses
        assert where(fleet, "m") == ["a"]
    fleet.missed("a", "refused")
    assert where(fleet, "m") == []
    fleet.missed("a", "refused")
    answers(fleet, "a", a_model("m"))
    assert where(fleet, "m") == ["a"]
    assert fleet.nodes["a"].misses == 0
    assert [change.kind for change in seen] == ["model_seen", "neuron_up", "neuron_down", "neuron_up"]
    assert seen[2].detail == "refused"


def test_misses_are_forgiven_by_an_answered_request_but_only_while_healthy():
    """Misses count in a row; an answered request does not make an unhealthy node healthy."""
    fleet = a_fleet("a")
    answers(fleet, "a")
    fleet.missed("a")
    fleet.missed("a")
    fleet.succeeded("a")
    fleet.missed("a")
    assert fleet.any_healthy()
    fleet.missed("a")
    fleet.missed("a")
    fleet.succeeded("a")
    assert not fleet.any_healthy()
    assert fleet.nodes["a"].misses == 3, "still the same outage, which is announced once"


def test_answered_request_ends_a_retry_after():
    """The model answered before its Retry-After ended, so it is not avoided any longer."""
    fleet = a_fleet("a", clock=lambda: 0.0)
    answers(fleet, "a", a_model("m"))
    fleet.busy("a", "m", 60)
    (replica,) = fleet.replicas("m")
    assert replica.troubled
    fleet.succeeded("a", "m")
    assert not replica.troubled


def test_restart_of_a_neuron_closes_its_circuit_breaker():
    """A smaller uptime means a restart; failures before it do not count."""
    fleet = a_fleet("a", clock=lambda: 0.0)
    answers(fleet, "a", a_model("m"), uptime_s=1000.0)
    for _ in range(FAILURES):
        fleet.at_fault("a", "m", "500")
    assert not fleet.nodes["a"].breaker.closed
    answers(fleet, "a", a_model("m"), uptime_s=1010.0)
    assert not fleet.nodes["a"].breaker.closed
    answers(fleet, "a", a_model("m"), uptime_s=3.0)
    assert fleet.nodes["a"].breaker.closed


def test_models_no_longer_reported_are_pruned():
    """A model that is missing from a report is gone."""
    fleet, seen = a_fleet("a"), []
    answers(fleet, "a", a_model("m"), a_model("n"))
    fleet.observers.append(seen.append)
    answers(fleet, "a", a_model("n", "unloaded"))
    assert set(fleet.nodes["a"].models) == {"n"}
    assert where(fleet, "m") == where(fleet, "n") == []
    assert [(change.kind, change.model, change.after) for change in seen] == [
        ("model_gone", "m", None),
        ("status_changed", "n", "unloaded"),
    ]


def test_lease_is_counted_until_its_block_ends_with_an_error_too():
    """Every way out of the block gives the lease back."""
    clock = Clock()
    fleet = a_fleet("a", clock=clock)
    answers(fleet, "a", a_model("m"))
    replica = fleet.nodes["a"].models["m"]
    with pytest.raises(RuntimeError, match="boom"), fleet.lease("a", "m"):
        assert (replica.leases, fleet.leases, fleet.nodes["a"].leases) == (1, 1, 1)
        with pytest.raises(AssertionError, match="m on a"):
            assert_idle(fleet)
        clock.now = 7.0
        raise RuntimeError("boom")
    assert_idle(fleet)
    assert replica.last_used == 7.0


def test_lease_survives_its_model_vanishing_and_coming_back():
    """One request is counted once, whatever polls report meanwhile."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    with fleet.lease("a", "m"):
        fleet.dropped("a", "m")
        assert fleet.holders("m") == ()
        answers(fleet, "a", a_model("m"))
        assert fleet.replicas("m")[0].leases == 1
        answers(fleet, "a")
    assert_idle(fleet)
    assert fleet.nodes["a"].models == {}


def test_lease_cannot_be_taken_twice():
    """A second `with` on a taken lease raises."""
    fleet = a_fleet("a")
    lease = fleet.lease("a", "m")
    with lease, pytest.raises(RuntimeError, match="already"):
        lease.__enter__()
    assert_idle(fleet)


def local_changes():
    def unload(fleet):
        fleet.unloading("a", "m")
        fleet.dropped("a", "m")

    def load(fleet):
        fleet.dropped("a", "m")
        fleet.loaded("a", a_model("m", url="http://new:1"))

    return [
        pytest.param(lambda fleet: fleet.dropped("a", "m"), None, id="dropped"),
        pytest.param(unload, None, id="unloaded"),
        pytest.param(lambda fleet: fleet.unloading("a", "m"), "unloading", id="being-unloaded"),
        pytest.param(load, "loaded", id="loaded"),
    ]


@pytest.mark.parametrize(("change", "status"), local_changes())
@pytest.mark.parametrize("reported", ["loaded", "unloaded", None])
def test_poll_that_began_before_our_own_change_does_not_undo_it(change, status, reported):
    """The next poll, which begins after the change, counts again."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"), a_model("other"))
    mark = fleet.mark("a")
    change(fleet)
    models = () if reported is None else (a_model("m", reported),)
    fleet.answered("a", NodeReport((*models, a_model("other", "unloaded"))), since=mark)
    replica = fleet.holders("m")
    assert (replica[0].status if replica else None) == status
    assert fleet.holders("other")[0].status == "unloaded"
    if status != "unloading":
        fleet.answered("a", NodeReport(models), since=fleet.mark("a"))
        assert [replica.status for replica in fleet.holders("m")] == ([reported] if reported else [])


def test_poll_that_began_before_a_refused_connection_does_not_forgive_it():
    """An answer from before the failure does not prove that the node is up."""
    fleet = a_fleet("a")
    answers(fleet, "a")
    mark = fleet.mark("a")
    fleet.missed("a")
    fleet.answered("a", NodeReport(()), since=mark)
    assert (fleet.nodes["a"].misses, fleet.nodes["a"].urls_doubtful) == (1, True)
    answers(fleet, "a")
    assert (fleet.nodes["a"].misses, fleet.nodes["a"].urls_doubtful) == (0, False)


def test_load_that_failed_leaves_no_trace():
    """After the failure the model is not on the node, as before."""
    fleet = a_fleet("a")
    answers(fleet, "a")
    fleet.loading("a", "m")
    fleet.unchanged("a", "m")
    assert fleet.nodes["a"].models == {}


def test_draining_node_takes_no_new_requests():
    """A draining node is healthy, but not among the replicas."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", a_model("m"))
    answers(fleet, "b", a_model("m"))
    fleet.drain("a", draining=True)
    assert where(fleet, "m") == ["b"]
    fleet.drain("a", draining=False)
    assert where(fleet, "m") == ["a", "b"]


def test_drained_node_stays_drained_until_it_is_undrained():
    """Polls, an outage and a restart change nothing; drain and undrain are announced once each."""
    fleet, seen = a_fleet("a"), []
    answers(fleet, "a", a_model("m"), uptime_s=100.0)
    fleet.observers.append(seen.append)
    fleet.drain("a", draining=True)
    answers(fleet, "a", a_model("m"), uptime_s=110.0)
    for _ in range(3):
        fleet.missed("a", "gone")
    answers(fleet, "a", a_model("m"), uptime_s=1.0)
    fleet.drain("a", draining=True)
    assert fleet.nodes["a"].draining
    assert fleet.snapshot().nodes[0].draining
    assert where(fleet, "m") == []
    fleet.drain("a", draining=False)
    assert where(fleet, "m") == ["a"]
    assert [change.kind for change in seen] == ["draining", "neuron_down", "neuron_up", "undrained"]


def test_failed_load_clears_the_loading_status_that_a_poll_reported_during_it():
    """A neuron that died during the load cannot report its end, and no request must wait for it."""
    fleet = a_fleet("a")
    answers(fleet, "a")
    fleet.loading("a", "m")
    answers(fleet, "a", a_model("m", "loading"))
    fleet.unchanged("a", "m")
    assert not fleet.nodes["a"].is_loading("m")
    assert fleet.holders("m") == ()
    answers(fleet, "a", a_model("m", "loading"))  # a new report of loading counts again
    assert fleet.nodes["a"].is_loading("m")


def test_fault_of_a_neuron_that_answers_counts_for_the_breaker_and_not_as_a_miss():
    """The node answers polls, but fails requests."""
    fleet = a_fleet("a")
    answers(fleet, "a", a_model("m"))
    for _ in range(FAILURES):
        fleet.at_fault("a", "m", "500: CUDA error")
    assert (fleet.nodes["a"].misses, fleet.nodes["a"].healthy) == (0, True)
    assert not fleet.nodes["a"].breaker.closed


def test_devices_and_activation_outlive_a_poll_without_them_but_readings_do_not():
    """A failing `/health` hides no GPU and starts no second load; free memory becomes unknown."""
    fleet = a_fleet("a")
    warming = ActivationReport("pre_warming", "m", ("n",))
    answers(fleet, "a", devices=(a_gpu(),), activation=warming, uptime_s=5.0)
    fleet.answered("a", NodeReport(()))
    node = fleet.nodes["a"]
    assert (node.activation, node.uptime_s) == (warming, 5.0)
    assert node.devices[0].vram_total_mb == 24_000
    assert node.devices[0].vram_free_mb is None


async def test_waiters_wake_when_a_model_arrives_or_falls_idle(autojump_clock):
    """Other changes, such as a reading, wake no waiter."""
    fleet, woken = a_fleet("a", clock=trio.current_time), []
    answers(fleet, "a")

    async def wait():
        while True:
            await fleet.wait_changed()
            woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        answers(fleet, "a", a_model("m"))
        await trio.sleep(1)
        with fleet.lease("a", "m"):
            await trio.sleep(1)
        await trio.sleep(1)
        answers(fleet, "a", a_model("m"), devices=(a_gpu(free_mb=1),))
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert woken == [1, 3]


def broken(fleet, model_id, times=FAILURES):
    """Dropped connections."""
    for _ in range(times):
        fleet.at_fault("a", model_id, "the neuron closed the connection")


def test_broken_model_keeps_no_requests_from_the_other_models_of_its_neuron():
    """Failures count against the model on the neuron."""
    fleet = a_fleet("a", clock=lambda: 0.0)
    answers(fleet, "a", a_model("m"), a_model("n"), a_model("o"))
    broken(fleet, "m", 50)
    states = {model_id: fleet.nodes["a"].models[model_id].admits(0.0) for model_id in "mno"}
    assert states == {"m": False, "n": True, "o": True}
    assert fleet.nodes["a"].healthy


def test_neuron_whose_models_all_fail_is_avoided_as_a_whole():
    """With one that answers in between they do not fail alike."""
    fleet = a_fleet("a", clock=lambda: 0.0)
    answers(fleet, "a", a_model("m"), a_model("n"))
    broken(fleet, "m")
    fleet.succeeded("a", "n", answered=True)
    broken(fleet, "m")
    assert fleet.nodes["a"].breaker.closed
    broken(fleet, "n")
    assert not fleet.nodes["a"].breaker.closed
    answers(fleet, "a", a_model("m"), a_model("n"), a_model("new"))
    assert fleet.nodes["a"].models["new"].admits(0.0), "a model that has just come has not failed"


@pytest.mark.parametrize(
    ("url", "misses"),
    [("http://a:13131", 1), ("http://A:13131/v1", 1), ("http://a:8080", 0), ("http://b:13131", 0), ("http://[x", 0)],
)
def test_refused_connection_counts_against_the_neuron_only_at_its_own_endpoint(url, misses):
    """Elsewhere it is the model's engine that is gone."""
    fleet = a_fleet("a", clock=lambda: 0.0)
    answers(fleet, "a", a_model("m", url=url))
    fleet.unreachable("a", "m", "connection refused")
    assert (fleet.nodes["a"].misses, fleet.nodes["a"].urls_doubtful) == (misses, True)


def test_model_that_was_away_starts_with_a_closed_breaker():
    """A reload mends it; so does the neuron's return after an outage."""
    fleet = a_fleet("a", clock=lambda: 0.0)
    answers(fleet, "a", a_model("m"), a_model("n"))
    broken(fleet, "m")
    answers(fleet, "a", a_model("m", "recovering"), a_model("n"))
    answers(fleet, "a", a_model("m"), a_model("n"))
    assert fleet.nodes["a"].models["m"].breakers_closed
    broken(fleet, "m")
    for _ in range(3):
        fleet.missed("a", "gone")
    answers(fleet, "a", a_model("m"), a_model("n"))
    assert fleet.nodes["a"].models["m"].breakers_closed


def test_trial_of_a_model_ends_with_its_lease():
    """One request finds out; the next one waits for its result."""
    clock = Clock()
    fleet = a_fleet("a", clock=clock)
    answers(fleet, "a", a_model("m"), a_model("n"))
    broken(fleet, "m")
    clock.now = 2.0
    with fleet.lease("a", "m"):
        assert not fleet.nodes["a"].models["m"].admits(2.0)
    assert fleet.nodes["a"].models["m"].admits(2.0)
    with fleet.lease("a", "m"):
        fleet.succeeded("a", "m", answered=True)
    assert fleet.nodes["a"].models["m"].breakers_closed
