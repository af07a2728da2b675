"""scripts/perf_report.py: the table of ratios, the plot, and the part of docs/performance.md that they replace."""

import xml.etree.ElementTree as ET

import perf_report
import pytest


def a_round(request_us, chunk_us, **more):
    figures = {
        "requests_per_s": 1000.0,
        "request_us": {"small": request_us},
        "chunk_us": {"50": chunk_us, "200": chunk_us / 2},
        "translated_chunk_us": 0.0,
        "ttft_p50_ms": {"50": 3.0},
        "ttft_p99_ms": {"50": 9.0},
        "late_p99_ms": {"50": 1.0},
        "burst_p99_ms": 50.0,
        "rss_kib_per_stream": {"50": 4.0},
        "beside_p99_ms": {},
    }
    return figures | more


@pytest.fixture
def result():
    rounds = {
        "direct": [
            a_round(0, 0, ttft_p50_ms={"50": 1.0}) | {"request_us": {}, "chunk_us": {}, "rss_kib_per_stream": {}}
        ],
        "floor": [a_round(100, 40), a_round(110, 60), a_round(90, 50)],
        "cortex": [a_round(300, 30, translated_chunk_us=33.0, late_p99_ms={"50": 1.0, "1000": 120.0})] * 3,
        "vllm-router": [a_round(60, 20), a_round(50, 20), a_round(40, 20)],
    }
    return {
        "date": "2026-11-30",
        "machine": "2 cores",
        "load_average": 1.5,
        "many_s": 60,
        "many_rounds": 2,
        "rounds": rounds,
    }


def test_table_has_medians_and_ratios(result):
    lines = perf_report.table(result).splitlines()

    assert lines[0] == "| median of 3 rounds (ratio to floor) | goals | direct | floor | cortex | vllm-router |"
    cells = {line.split(" | ")[0][2:]: line[:-2].split(" | ")[1:] for line in lines[2:]}
    assert cells["CPU per request, us"][1:] == ["-", "100.0", "300.0 (3.00)", "50.0 (0.50)"]
    assert cells["CPU per chunk at 50 streams, us"][1:] == ["-", "50.0", "30.0 (0.60)", "20.0 (0.40)"]
    assert cells["CPU per translated chunk at 50 streams, us"][1:] == ["-", "-", "33.0", "-"]
    assert cells["TTFT p50 at 50 streams, ms"][1:] == ["1.0 (0.33)", "3.0", "3.0 (1.00)", "3.0 (1.00)"]
    assert cells["chunks late at 1,000 streams, p99, ms"][1:] == ["-", "-", "120.0", "-"]


def test_table_says_which_goals_are_met(result):
    """Of cortex, or of `keys`; those that are missed are bold. A goal without its other gateway has no figure."""
    goals = {line.split(" | ")[0][2:]: line.split(" | ")[1] for line in perf_report.table(result).splitlines()[2:]}

    assert goals["CPU per request, us"] == "**<= 2.5x floor: 3.00, missed**; keys <= 1.1x cortex; limits <= 1.1x cortex"
    assert goals["CPU per chunk at 50 streams, us"] == "<= 0.85x floor: 0.60; <= 1.9x router: 1.50"
    assert goals["CPU per translated chunk at 50 streams, us"] == "<= 1.15x floor: 0.66"
    assert goals["TTFT p99 of 200 streams that start at once, ms"] == "**<= 0.5x floor: 1.00, missed**"
    assert goals["chunks late at 1,000 streams, p99, ms"] == "**<= 100, missed**"


def test_docs_keep_what_is_not_measured(result, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{perf_report.BEGIN}\nold\n{perf_report.END}\n\nAfter\n")
    perf_report.write_docs(result, tmp_path)
    perf_report.write_docs(result, tmp_path)
    text = page.read_text()

    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter\n")
    assert "old" not in text
    assert text.count("Measured 2026-11-30 on 2 cores; load average 1.5. ") == 1
    plot = ET.parse(tmp_path / perf_report.PLOT)  # noqa: S314 - our own file
    assert [each.text for each in plot.iter() if each.text in result["rounds"]] == ["floor", "cortex", "vllm-router"]
