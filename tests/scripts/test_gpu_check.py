"""scripts/gpu_check.py: the table, and the part of docs/performance.md that it replaces. No engine."""

from __future__ import annotations

import argparse

import gpu_check
import pytest
from gpu_check import Answer, TierResult

OPTIONS = argparse.Namespace(engine="transformers", tiny=False, requests=2, tokens=11)
DEVICES = [{"name": "GPU", "vram_total_mb": 100_000}]


def a_tier(tier: str, total_s: float, **more) -> TierResult:
    """Its first answer waited for the load."""
    answers = [Answer(50.0, 51.0, 60.0, 11), *(Answer(0.2, total_s - 0.1, total_s, 11) for _ in range(2))]
    return TierResult(tier, 1_700_000_000, 12.0, 500, 4_000, 510, 3_500, 70.0, 400.0, answers, **more)


def test_table_leaves_out_the_answer_that_waited_for_the_load() -> None:
    table = gpu_check._table([a_tier("small", 2.3), a_tier("large", 4.6)], DEVICES, OPTIONS)

    assert "| small | 1.7B | 12.0 | 200 | 5.0 | 2.30 | 500 / 4,000 / 510 | 3,500 | 70 / 400 |" in table
    assert "Total time, large to small: 2.00; real models of the full sizes had 2.68." in table
    assert "Tiny" not in table


def test_table_of_the_bench() -> None:
    medians = {name: {"median": value} for name, value in (("probe", 1.0), ("first_token", 0.25), ("total", 2.0))}
    tiers = [{"tier": "small", "tokens_per_s": 64.0, **medians}, {"tier": "large", "tokens_per_s": 16.0, **medians}]
    table = gpu_check._bench_table({"tiers": tiers, "ratio": 2.5, "reference": {"ratio": 2.68}})

    assert "| small | 1.00 | 0.25 | 2.00 | 64.0 |" in table
    assert table.endswith("large to small: 2.50, beside 2.68.")


def test_page_gets_one_part_for_each_engine_and_shape(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run replaces its own part only."""
    page = tmp_path / "performance.md"
    page.write_text("# Performance\n\nText.\n")
    monkeypatch.setattr(gpu_check, "PAGE", page)
    tiny = argparse.Namespace(engine="llamacpp", tiny=True)
    gpu_check._write_page("first", OPTIONS)
    gpu_check._write_page("tiny", tiny)
    gpu_check._write_page("second", OPTIONS)
    text = page.read_text()

    assert text.startswith("# Performance\n\nText.\n")
    assert text.count(gpu_check.HEADING) == 1
    assert ("first" in text, "second" in text, "tiny" in text) == (False, True, True)


@pytest.mark.parametrize(
    "arguments", [["--engine", "llamacpp"], ["--tokens", "1"], ["--requests", "0"], ["--python", "/no/such/python"]]
)
def test_wrong_arguments_are_refused(arguments, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("sys.argv", ["gpu_check", "--dir", str(tmp_path), *arguments])

    with pytest.raises(SystemExit) as refusal:
        gpu_check.main()
    assert refusal.value.code != 0
