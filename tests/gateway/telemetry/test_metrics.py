"""The names, types, labels and buckets that dashboards and alerts depend on."""

import pytest
from fakes.fleets import a_fleet, a_gpu, answers
from prometheus_client.parser import text_string_to_metric_families

from gateway.telemetry.metrics import CatalogueReadings, Metrics
from gateway.telemetry.series import WAITING_VALUES

ROUTE = ("model", "node")
DURATION_S = [0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1200]
FIRST_TOKEN_S = [0.05, 0.1, 0.25, 0.5, 1, 2, 5, 10, 20, 30, 60, 120]
TOKENS_PER_S = [1, 2.5, 5, 10, 15, 20, 30, 40, 60, 80, 120, 200]
COUNTERS = {
    "cortex_requests_total": ("requests", ROUTE),
    "cortex_request_errors_total": ("errors", (*ROUTE, "code")),
    "cortex_prompt_tokens_total": ("prompt_tokens", ROUTE),
    "cortex_completion_tokens_total": ("completion_tokens", ROUTE),
    "cortex_cached_prompt_tokens_total": ("cached_prompt_tokens", ROUTE),
    "cortex_cold_starts_total": ("cold_starts", ROUTE),
    "cortex_evictions_total": ("evictions", ROUTE),
    "cortex_client_disconnects_total": ("disconnects", ROUTE),
    "cortex_retries_total": ("retries", ROUTE),
    "cortex_alias_requests_total": ("alias_requests", ("alias", "model")),
}
HISTOGRAMS = {
    "cortex_request_duration_seconds": ("duration", ROUTE, DURATION_S),
    "cortex_time_to_first_token_seconds": ("first_token", ROUTE, FIRST_TOKEN_S),
    "cortex_tokens_per_second": ("tokens_per_second", ROUTE, TOKENS_PER_S),
    "cortex_overhead_seconds": ("overhead", ("phase",), None),
}


@pytest.fixture
def metrics():
    return Metrics()


def families(metrics):
    """The metric families of a scrape, by name; the `# TYPE` of a counter has its `_total`."""
    found = text_string_to_metric_families(metrics.expose().decode())
    return {family.name + "_total" * (family.type == "counter"): family for family in found}


@pytest.mark.parametrize("name", COUNTERS)
def test_counter_has_its_labels(metrics, name):
    """It does not exist before it has counted."""
    attribute, labels = COUNTERS[name]
    assert families(metrics) == {}
    getattr(metrics, attribute)(*labels).inc()

    (family,) = families(metrics).values()
    assert (family.type, [sample.name for sample in family.samples]) == ("counter", [name])
    assert family.samples[0].labels == {label: label for label in labels}


def test_times_between_tokens_are_counted_per_stream(metrics):
    """Ten intervals of 50 ms; two of 3 s, beyond the last bound."""
    metrics.inter_token("m", "n").observe_many(0.05, 10)
    metrics.inter_token("m", "n").observe_many(3.0, 2)

    (family,) = families(metrics).values()
    samples = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert (family.name, family.type) == ("cortex_inter_token_seconds", "histogram")
    assert {sample.labels["model"] + sample.labels["node"] for sample in family.samples} == {"mn"}
    for bound, count in (("0.04", 0), ("0.05", 10), ("2.0", 10), ("+Inf", 12)):
        assert samples["cortex_inter_token_seconds_bucket", bound] == count
    assert samples["cortex_inter_token_seconds_count", None] == 12
    assert samples["cortex_inter_token_seconds_sum", None] == 6.5


@pytest.mark.parametrize("name", HISTOGRAMS)
def test_histogram_has_its_buckets(metrics, name):
    """Quantiles depend on the bounds: a change would silently falsify every dashboard."""
    attribute, labels, bounds = HISTOGRAMS[name]
    getattr(metrics, attribute)(*labels).observe(1)

    (family,) = families(metrics).values()
    buckets = [sample for sample in family.samples if sample.name == f"{name}_bucket"]
    upper = [float(sample.labels["le"]) for sample in buckets]
    assert family.type == "histogram"
    assert upper[-1] == float("inf")
    assert {tuple(sorted(sample.labels.keys() - {"le"})) for sample in buckets} == {tuple(sorted(labels))}
    if bounds is None:
        assert (upper[0], upper[-2]) == (0.0001, 0.1)
    else:
        assert upper[:-1] == bounds


def test_gauges_are_of_the_current_nodes(metrics):
    """By node, and by device if there is a reading: an unknown reading is omitted, 0 is not."""
    fleet = a_fleet("a", "b")
    answers(fleet, "a", devices=(a_gpu(0, total_mb=24_000, free_mb=0), a_gpu(1, total_mb=24_000, free_mb=None)))
    metrics.watch_fleet(lambda: fleet.snapshot().nodes)

    samples = {name: [(s.labels, s.value) for s in family.samples] for name, family in families(metrics).items()}
    assert samples["cortex_node_healthy"] == [({"node": "a"}, 1), ({"node": "b"}, 0)]
    assert samples["cortex_device_vram_free_bytes"] == [({"node": "a", "device": "0"}, 0)]


def test_gauges_of_the_catalogue_exist_from_the_start(metrics):
    """Results that have not occurred have no sample."""
    metrics.watch_catalogue(lambda: CatalogueReadings(3, True, {"applied": 2, "unchanged": 0, "rejected": 0}))

    samples = {name: [(s.labels, s.value) for s in family.samples] for name, family in families(metrics).items()}
    assert samples == {
        "cortex_catalogue_generation": [({}, 3)],
        "cortex_catalogue_last_reload_success": [({}, 1)],
        "cortex_catalogue_reloads_total": [({"result": "applied"}, 2)],
    }


def test_histogram_counts_every_value_whenever_it_is_read(metrics):
    """Values that wait are counted, too; a bound is in its bucket."""
    values = [bound * factor for bound in DURATION_S for factor in (1, 1, 1.5)] * WAITING_VALUES
    for number, value in enumerate(values, 1):
        metrics.duration("m", "n").observe(value)
        if number in {1, WAITING_VALUES, WAITING_VALUES + 1, len(values)}:
            (family,) = families(metrics).values()
            seen = {sample.labels.get("le", sample.name): sample.value for sample in family.samples}
            assert seen["cortex_request_duration_seconds_count"] == seen["+Inf"] == number
            assert seen["cortex_request_duration_seconds_sum"] == pytest.approx(sum(values[:number]))
            for bound in DURATION_S:
                assert seen[str(float(bound))] == sum(each <= bound for each in values[:number])
