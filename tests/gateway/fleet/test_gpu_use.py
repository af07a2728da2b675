"""GPU-seconds and energy of leases: concurrent leases share the devices, and nothing is counted twice or lost."""

import random

import pytest

from gateway.config.settings import NeuronSettings
from gateway.fleet.lease import GpuUse
from gateway.fleet.reports import DeviceReport, ModelReport, NodeReport
from gateway.fleet.state import Fleet


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def fleet(clock):
    return Fleet((NeuronSettings("beast", "http://beast:13131"),), misses=3, clock=clock)


def report(fleet, *watts, devices=(0, 1)):
    cards = tuple(DeviceReport(index, "card", 24_000, power_w=draw) for index, draw in enumerate(watts))
    fleet.answered(
        "beast", NodeReport((ModelReport("m", "loaded", devices=devices, url="http://beast"),), devices=cards)
    )


def test_a_lease_alone_takes_all_devices_of_its_model(fleet, clock):
    report(fleet, 100.0, 50.0, 999.0)
    use = GpuUse()
    with fleet.lease("beast", "m", gpu_use=use):
        clock.now += 10
    clock.now += 1000
    assert (use.seconds, use.joules) == (20.0, 1500.0)


def test_concurrent_leases_share_the_devices(fleet, clock):
    """The first runs 4 s alone and 6 s with the second, which then runs 2 s alone."""
    report(fleet, 100.0, devices=(0,))
    first, second = GpuUse(), GpuUse()
    lease = fleet.lease("beast", "m", gpu_use=first)
    with lease:
        clock.now += 4
        other = fleet.lease("beast", "m", gpu_use=second)
        other.__enter__()
        clock.now += 6
    clock.now += 2
    other.__exit__(None, None, None)
    assert (first.seconds, second.seconds) == (7.0, 5.0)
    assert (first.joules, second.joules) == (700.0, 500.0)


def test_power_counts_from_the_poll_that_reported_it(fleet, clock):
    report(fleet, 100.0, devices=(0,))
    use = GpuUse()
    with fleet.lease("beast", "m", gpu_use=use):
        clock.now += 10
        report(fleet, 300.0, devices=(0,))
        clock.now += 10
    assert use.joules == 4000.0


@pytest.mark.parametrize("watts", [(None, 50.0), ()])
def test_energy_is_unknown_where_a_device_reports_no_power(fleet, clock, watts):
    report(fleet, *watts)
    use = GpuUse()
    with fleet.lease("beast", "m", gpu_use=use):
        clock.now += 10
    assert (use.seconds, use.joules) == (20.0, None)


def test_an_engine_that_names_no_devices_counts_as_one(fleet, clock):
    report(fleet, 100.0, devices=())
    use = GpuUse()
    with fleet.lease("beast", "m", gpu_use=use):
        clock.now += 10
    assert (use.seconds, use.joules) == (10.0, None)


def test_an_attempt_elsewhere_is_added(fleet, clock):
    report(fleet, 100.0, devices=(0,))
    use = GpuUse()
    for _ in range(2):
        with fleet.lease("beast", "m", gpu_use=use):
            clock.now += 1
    assert (use.seconds, use.joules) == (2.0, 200.0)


def test_shares_add_up_to_the_time_in_which_the_model_was_leased(fleet, clock):
    report(fleet, 100.0, devices=(0,))
    chance = random.Random(3)  # noqa: S311 - repeatable
    uses, running, busy_s = [], [], 0.0
    for _ in range(2000):
        if running and chance.random() < 0.5:
            running.pop(chance.randrange(len(running))).__exit__(None, None, None)
        else:
            uses.append(GpuUse())
            lease = fleet.lease("beast", "m", gpu_use=uses[-1])
            lease.__enter__()
            running.append(lease)
        step_s = chance.random()
        busy_s += step_s if running else 0.0
        clock.now += step_s
    for lease in running:
        lease.__exit__(None, None, None)
    assert sum(use.seconds for use in uses) == pytest.approx(busy_s)
    assert sum(use.joules for use in uses) == pytest.approx(100 * busy_s)
