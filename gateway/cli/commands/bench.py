"""`cortex bench`: measures the tiers behind a gateway, and writes a report."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from gateway import __version__
from gateway.cli import api_client
from gateway.cli.api_client import ApiError, GatewayAddress
from gateway.cli.bench.chat_client import Sample
from gateway.cli.bench.demo_fleet import DEMO_COLD, demo_fleet
from gateway.cli.bench.figures import Figures, evaluate
from gateway.cli.bench.html_report import About, render_html
from gateway.cli.bench.progress import bench_progress
from gateway.cli.bench.questions import questions
from gateway.cli.bench.run import FULL, QUICK, Bench, UnavailableError
from gateway.cli.bench.text_report import text_report
from gateway.cli.connection import Connection
from gateway.cli.connection_options import asking_options
from gateway.cli.options import json_option
from gateway.cli.terminal import console, print_error, print_json

__all__ = ["bench"]

DONE, REFUSED, UNAVAILABLE, WRONG_MODEL, INTERRUPTED = 0, 1, 2, 3, 130  # exit codes


@click.command()
@click.argument("tiers", nargs=-1)
@click.option(
    "--quick", is_flag=True, help="A sixth of the questions, and load on the first tier only: under a minute."
)
@click.option("--demo", is_flag=True, help="Start a gateway with three simulated neurons, and measure those.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="With --demo: how many times as fast as real models the simulated ones are.",
)
@click.option(
    "--cold",
    multiple=True,
    metavar="MODEL",
    help="Measure the cold start of this model too. May be repeated. Without it: none, with --demo Qwen/Qwen3-14B.",
)
@click.option(
    "--min-correct",
    type=click.FloatRange(0, 100),
    metavar="PERCENT",
    help="Exit with 1 if a tier answers fewer questions correctly. Without it: any share will do.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-results"),
    show_default=True,
    help="Folder for report.html, summary.json and samples.jsonl; a new run replaces them.",
)
@asking_options
@json_option
def bench(
    tiers: tuple[str, ...],
    cold: tuple[str, ...],
    speed: float,
    min_correct: float | None,
    out: Path,
    *,
    quick: bool,
    demo: bool,
    connection: Connection,
    as_json: bool,
) -> None:
    """Measure TIERS, models or aliases from small to large.

    The report has correctness, times, speeds, loads and costs. Without TIERS: helexa/small and helexa/large if the
    gateway has both, else up to four of its aliases. A full run asks 42 questions per tier and takes minutes. Its
    requests are real: a cold start may evict idle models.

    Exit code 0 if it was measured, 1 if --min-correct is missed, 2 if the gateway does not answer or a tier answered no
    request, 3 if another model answered than the one that a tier stands for, 130 after Ctrl-C.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            address = stack.enter_context(demo_fleet(speed)) if demo else _address(connection)
            samples = stack.enter_context((out / "samples.jsonl").open("w", encoding="utf-8"))
            run = Bench(
                address.api,
                tiers,
                cold or (DEMO_COLD if demo else ()),
                QUICK if quick else FULL,
                None if demo else address.token,
                partial(_write_line, samples.write, samples.flush),
            )
            interrupted = _run(run)
            report = _Report(run, _nodes(address), interrupted)
    except (UnavailableError, ApiError) as error:
        print_error(f"cortex bench: {error}")
        sys.exit(UNAVAILABLE)
    except OSError as error:
        print_error(f"cortex bench: {error.filename or out}: {error.strerror or error}")
        sys.exit(REFUSED)
    report.write(out, as_json=as_json)
    sys.exit(INTERRUPTED if interrupted else _exit_code(run.samples, report.figures, min_correct))


def _address(connection: Connection) -> GatewayAddress:
    address = connection.address_if_possible()
    if address.is_remote and connection.api is None:
        raise UnavailableError("--url names the admin port; name the API, to which requests go, with --endpoint")
    return address


def _write_line(write: Callable[[str], object], flush: Callable[[], object], sample: Sample) -> None:
    """Write each sample at once, so that an interrupted run keeps its samples."""
    write(json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n")
    flush()


def _run(run: Bench) -> bool:
    """Whether Ctrl-C ended the run; what was measured until then is reported."""
    interrupted, failures = False, list[Exception]()
    try:
        with bench_progress() as progress:
            record = run.record

            def record_and_count(sample: Sample) -> None:
                record(sample)
                progress.answered()

            run.record = record_and_count
            trio.run(run.run, progress.planned, progress.begins)
    except* KeyboardInterrupt:
        interrupted = True
    except* UnavailableError as group:
        failures += group.exceptions
    if failures:
        raise failures[0]
    return interrupted


def _nodes(address: GatewayAddress) -> list[dict[str, Any]]:
    """The neurons with their GPUs; empty without a key that may read them."""
    if address.token is None:
        return []
    try:
        with api_client.open_client() as client:
            url = f"{address.admin}/admin/fleet"
            nodes: list[dict[str, Any]] = api_client.get(client, url, ("nodes",), token=address.token)["nodes"]
            return nodes
    except ApiError:
        return []


class _Report:
    """The figures of a run, and where they go."""

    def __init__(self, run: Bench, nodes: list[dict[str, Any]], interrupted: bool) -> None:
        self._run = run
        self.figures: Figures = evaluate(run.samples, run.tiers, run.models)
        self._about = About(
            gateway="the demo fleet" if self.figures.simulated else run.api,
            date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
            took_s=time.perf_counter() - run.began,
            plan=run.plan.name,
            version=__version__,
            models=run.models,
            nodes=nodes,
            expected={question.id: question.expected for question in questions()},
            interrupted=interrupted,
        )

    def write(self, out: Path, *, as_json: bool) -> None:
        """Write the files, and print the tables or JSON."""
        summary = {
            "gateway": self._run.api,
            "date": self._about.date,
            "took_s": round(self._about.took_s, 1),
            "plan": self._run.plan.name,
            **self.figures.as_json(),
        }
        (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        report = render_html(self.figures, self._run.samples, self._about)
        (out / "report.html").write_text(report, encoding="utf-8")
        if as_json:
            print_json(summary)
            return
        shown = console()
        for part in text_report(self.figures):
            shown.print(part)
            shown.print()
        shown.print(f"report: {out / 'report.html'}   every request: {out / 'samples.jsonl'}", soft_wrap=True)


def _exit_code(samples: list[Sample], figures: Figures, min_correct: float | None) -> int:
    if any(sample.verdict == "wrong model" for sample in samples):
        return WRONG_MODEL
    for tier in figures.tiers:
        asked, correct = sum(tier.asked.values()), sum(tier.correct.values())
        if not asked or tier.failed == asked:
            return UNAVAILABLE
        if min_correct is not None and not figures.simulated and 100 * correct < min_correct * asked:
            return REFUSED
    return DONE
