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
    }
    return figures | more


@pytest.fixture
def result():
    rounds = {
        "floor": [a_round(100, 40), a_round(110, 60), a_round(90, 50)],
        "cortex": [a_round(300, 30, translated_chunk_us=33.0)] * 3,
    }
    return {
        "date": "2026-11-30",
        "machine": "2 cores",
        "load_average": 1.5,
        "direct_ttft_p50_ms": 1.0,
        "rounds": rounds,
    }


def test_table_has_medians_and_ratios(result):
    lines = perf_report.table(result).splitlines()

    assert lines[0] == "| median of 3 rounds (ratio to floor) | floor | cortex |"
    assert "| CPU per request, us | 100.0 (1.00) | 300.0 (3.00) |" in lines
    assert "| CPU per chunk at 50 streams, us | 50.0 (1.00) | 30.0 (0.60) |" in lines
    assert "| CPU per translated chunk at 50 streams, us | - | 33.0 |" in lines
    assert "| added TTFT p50 at 50 streams, ms | 2.0 (1.00) | 2.0 (1.00) |" in lines


def test_docs_keep_what_is_not_measured(result, tmp_path):
    page = tmp_path / "performance.md"
    page.write_text(f"# Before\n\n{perf_report.BEGIN}\nold\n{perf_report.END}\n\nAfter\n")
    perf_report.write_docs(result, tmp_path)
    perf_report.write_docs(result, tmp_path)
    text = page.read_text()

    assert text.startswith("# Before\n")
    assert text.endswith("\n\nAfter\n")
    assert "old" not in text
    assert text.count("Measured 2026-11-30 on 2 cores; load average 1.5.") == 1
    plot = ET.parse(tmp_path / perf_report.PLOT)  # noqa: S314 - our own file
    assert [each.text for each in plot.iter() if each.text in {"floor", "cortex"}] == ["floor", "cortex"]
