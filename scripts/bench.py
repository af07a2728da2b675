"""Compare models or aliases through a gateway: correctness, times, and the gateway's own overhead.

This file sends the requests and records samples; `bench_report.py` evaluates them. It is blocking on purpose: one
request at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click
import httpx
from bench_report import CASES, LONG_PROBE, PROBE, Case, Phase, Sample, Via, exit_code, plot, tables
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from catalogue.toml.faults import FaultyFile
from gateway.config.load import load
from gateway.fleet.control.neuron_client import loopback_rewrite
from gateway.http import sse

CONNECT_S = 5.0
SILENCE_S = 1800.0  # a cold load may say nothing for as long as `deadlines.load_seconds`
DEMO_START_S = 30.0
DEMO_STOP_S = 20.0
INTERRUPTED = 130  # exit code, 128 + SIGINT
LONG_SENTENCES = 40  # about 600 tokens


class UnavailableError(Exception):
    """No gateway answers, or it does not know the model."""


# Requests .............................................................................................................


@dataclass
class Answer:
    """What is known of one answer while it arrives. Times in seconds from sending."""

    first_token_s: float | None = None
    last_token_s: float | None = None
    tokens_out: int | None = None
    model: str | None = None
    text: str = ""
    error: str | None = None
    finished: bool = False

    def read_event(self, data: bytes, at_s: float) -> None:
        """One SSE event of a chat completion."""
        if data == b"[DONE]":
            return
        event = json.loads(data)
        self._note(event)
        for choice in event.get("choices") or ():
            delta = choice.get("delta") or {}
            self.text += delta.get("content") or ""
            self.finished = self.finished or bool(choice.get("finish_reason"))
            if any(delta.get(key) for key in ("content", "reasoning_content", "reasoning", "tool_calls")):
                self.last_token_s = at_s
                self.first_token_s = at_s if self.first_token_s is None else self.first_token_s

    def read_body(self, body: bytes) -> None:
        """A whole chat completion, or an error envelope."""
        answer = json.loads(body)
        self._note(answer)
        for choice in answer.get("choices") or ():
            self.text += choice["message"].get("content") or ""
            self.finished = True

    def _note(self, fields: Mapping[str, Any]) -> None:
        """Fields that events and bodies share. Any event may have usage."""
        error = fields.get("error")
        if error:
            self.error = str(error.get("message")) if isinstance(error, dict) else str(error)
        self.model = fields.get("model") or self.model
        usage = fields.get("usage")
        if usage is not None and usage.get("completion_tokens") is not None:
            self.tokens_out = usage["completion_tokens"]


@dataclass(frozen=True, slots=True)
class Question:
    """One request and how to file its sample. `node` is the neuron for a direct request, None for the gateway."""

    subject: str
    target: str
    case: Case
    phase: Phase
    round: int
    via: Via
    base_url: str
    node: str | None = None

    def body(self) -> dict[str, Any]:
        """The request, in OpenAI's form."""
        model = self.subject if self.via == "gateway" else self.target
        messages = [{"role": "user", "content": _prompt(self)}]
        fields: dict[str, Any] = {"model": model, "messages": messages, "temperature": 0, "stream": self.case.stream}
        return fields | ({"stream_options": {"include_usage": True}} if self.case.stream else {})


def _prompt(question: Question) -> str:
    """The probe, or the long one after a text that begins differently every time, so that no prefix cache helps."""
    if not question.case.long:
        return PROBE
    lines = [f"Page {question.round} of the log kept by {question.via} for {question.case.name}."]
    lines += [f"The lamp in hall {number} was lit at dusk and put out at dawn." for number in range(LONG_SENTENCES)]
    return " ".join([*lines, LONG_PROBE])


def ask(client: httpx.Client, question: Question) -> Sample:
    """One request, timed. The sample's `error` has any failure."""
    answer = Answer()
    headers: Mapping[str, str] = {}
    began = time.perf_counter()
    try:
        with client.stream("POST", f"{question.base_url}/v1/chat/completions", json=question.body()) as response:
            headers = response.headers
            _read(response, answer, began)
    except httpx.HTTPError as error:
        answer.error = answer.error or f"{type(error).__name__}: {error}"
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        answer.error = f"an answer that is not OpenAI's: {error!r}"
    total_s = time.perf_counter() - began
    if answer.error is None and not answer.finished:
        answer.error = "ended without a finish_reason"
    return _sample(question, answer, headers, total_s)


def _read(response: httpx.Response, answer: Answer, began: float) -> None:
    """Read bytes as they arrive: waiting for a full buffer would measure the buffer: 0.65 s instead of 3 ms."""
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        body = b"".join(response.iter_bytes())
        if response.is_success:
            answer.read_body(body)
        else:
            answer.error = f"status {response.status_code}: {body[:300].decode(errors='replace')}"
        return
    reader = sse.Reader()
    for chunk in response.iter_bytes():
        at_s = time.perf_counter() - began
        for event in reader.feed(chunk):
            if event.data is not None:
                answer.read_event(event.data, at_s)


def _sample(question: Question, answer: Answer, headers: Mapping[str, str], total_s: float) -> Sample:
    both = answer.first_token_s is not None and answer.last_token_s is not None
    return Sample(
        subject=question.subject,
        target=question.target,
        case=question.case.name,
        via=question.via,
        phase=question.phase,
        round=question.round,
        total_s=total_s,
        first_token_s=answer.first_token_s,
        decode_s=(answer.last_token_s or 0) - (answer.first_token_s or 0) if both else None,
        tokens_out=answer.tokens_out,
        node=headers.get("x-cortex-node") or question.node,
        header_model=headers.get("x-cortex-model"),
        body_model=answer.model,
        text=answer.text,
        error=answer.error,
    )


# The plan of a run ....................................................................................................


@dataclass
class Bench:
    """One run: gateway, neurons, and the samples so far.

    Args:
        client: Used for everything, so that connections are warm both ways.
        gateway: The API's base URL.
        neurons: Base URL of each neuron's API by name; other neurons cannot be compared with.
        record: Called with every sample as soon as there is one.
    """

    client: httpx.Client
    gateway: str
    neurons: Mapping[str, str]
    record: Callable[[Sample], None]
    samples: list[Sample] = field(default_factory=list)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)

    def look(self) -> None:
        """Read the gateway's models now.

        Raises:
            UnavailableError: No valid answer.
        """
        try:
            entries = self.client.get(f"{self.gateway}/v1/models").raise_for_status().json()["data"]
            self.models = {entry["id"]: entry for entry in entries}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"no answer from {self.gateway}: {error}") from error

    def expect(self, subjects: tuple[str, ...]) -> None:
        """Raise UnavailableError unless all of these are listed."""
        unknown = [subject for subject in subjects if subject not in self.models]
        if unknown:
            raise UnavailableError(
                f"{self.gateway} does not list {', '.join(unknown)}; it has {', '.join(self.models)}"
            )

    def warm_up(self, subject: str) -> None:
        """The first request to a subject, kept apart; a cold start if the model was not loaded."""
        phase: Phase = "warm-up" if self.models[subject]["loaded"] else "cold"
        self._ask(self._question(subject, CASES[1], phase, 0))

    def measure(self, subject: str, case: Case, at: int) -> None:
        """One sample through the gateway and one of the neuron directly; the order alternates."""
        question = self._question(subject, case, "measured", at)
        questions = [question, *self._directly(question)]
        for each in questions if at % 2 else reversed(questions):
            self._ask(each)

    def _question(self, subject: str, case: Case, phase: Phase, at: int) -> Question:
        target = self.models[subject].get("alias_of") or subject
        return Question(subject, target, case, phase, at, "gateway", self.gateway)

    def _directly(self, question: Question) -> list[Question]:
        """The same question to the neuron that answered this subject last."""
        nodes = (sample.node for sample in reversed(self.samples) if sample.subject == question.subject)
        node = next((node for node in nodes if node is not None), None)
        if node is None or node not in self.neurons:
            return []
        try:
            url = self._inference_url(self.neurons[node], question.target)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError):
            return []  # nothing to compare with: the overhead stays unknown
        return [dataclasses.replace(question, via="neuron", base_url=url, node=node)]

    def _inference_url(self, neuron: str, model: str) -> str:
        """The URL where the neuron serves the model; a server without that API serves at its own address."""
        answer = self.client.get(f"{neuron}/models/{quote(model, safe='')}/endpoint")
        return loopback_rewrite(answer.json()["url"], neuron).rstrip("/") if answer.is_success else neuron

    def _ask(self, question: Question) -> None:
        sample = ask(self.client, question)
        self.samples.append(sample)
        self.record(sample)


def run(bench: Bench, subjects: tuple[str, ...], cold: tuple[str, ...], cases: list[Case], samples: int) -> None:
    """Cold starts and warm-up first, then rounds in which every subject and case is measured once."""
    first = tuple(dict.fromkeys((*cold, *subjects)))
    bench.look()
    bench.expect(first)
    with _progress(len(first) + samples * len(cases) * len(subjects)) as step:
        for subject in first:
            step(f"warm-up  {subject}")
            bench.warm_up(subject)
        for at in range(1, samples + 1):
            for case in cases:
                for subject in subjects:
                    step(f"{case.name}  {subject}")
                    bench.measure(subject, case, at)


@contextlib.contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """A bar on stderr; yields a function that begins the next step."""
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=total)
        begun = 0

        def step(name: str) -> None:
            nonlocal begun
            bar.update(task, description=name, completed=begun)
            begun += 1

        yield step
        bar.update(task, description="done", completed=total)


# The demo fleet .......................................................................................................


@contextlib.contextmanager
def demo_fleet(speed: float) -> Iterator[tuple[str, dict[str, str]]]:
    """`cortex demo` in a process of its own; yields the gateway's base URL and the neurons' by name.

    Raises:
        UnavailableError: It does not start.
    """
    with tempfile.TemporaryDirectory(prefix="cortex-bench-") as folder:
        command = [sys.executable, "-m", "gateway.cli", "demo", "--port", "0", "--dir", folder, "--speed", str(speed)]
        with (Path(folder) / "log").open("wb") as log:
            process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            yield _await_demo(process, Path(folder))
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(DEMO_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _await_demo(process: subprocess.Popen[bytes], folder: Path) -> tuple[str, dict[str, str]]:
    until = time.monotonic() + DEMO_START_S
    while process.poll() is None and time.monotonic() < until:
        with contextlib.suppress(FaultyFile, httpx.HTTPError):  # not written yet, not listening yet
            settings = load(folder / "cortex.toml", {}).settings
            url = f"http://{settings.gateway.listen}"
            if httpx.get(f"{url}/ready", trust_env=False).is_success:
                return url, {neuron.name: neuron.endpoint for neuron in settings.neurons}
        time.sleep(0.05)
    raise UnavailableError(f"cortex demo did not start: {(folder / 'log').read_text(errors='replace')}")


# The command ..........................................................................................................


def _read_neurons(_: click.Context, __: click.Parameter, pairs: tuple[str, ...]) -> dict[str, str]:
    if any("=" not in pair for pair in pairs):
        raise click.BadParameter("must be NAME=URL")
    return {name: url.rstrip("/") for name, _, url in (pair.partition("=") for pair in pairs)}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("subjects", nargs=-1)
@click.option("-e", "--endpoint", default="http://localhost:31313", show_default=True, help="The gateway's API.")
@click.option(
    "--neuron",
    "neurons",
    multiple=True,
    metavar="NAME=URL",
    callback=_read_neurons,
    show_default="none",
    help="A neuron's API, to compare with directly, by its name in cortex.toml. May be repeated.",
)
@click.option("--demo", is_flag=True, help="Start a gateway and three simulated neurons, and measure those.")
@click.option(
    "--speed",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="With --demo: speed of the neurons. Compare times with the reference at 1 only, the ratio at any speed.",
)
@click.option(
    "-n",
    "--samples",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    help="Measured requests for each subject and case, after the warm-up.",
)
@click.option(
    "--case",
    "cases",
    multiple=True,
    type=click.Choice([case.name for case in CASES]),
    show_default="all",
    help="Which cases: prompt length, with or without stream. May be repeated.",
)
@click.option(
    "--cold",
    multiple=True,
    metavar="MODEL",
    show_default="none; with --demo Qwen/Qwen3-14B",
    help="Send this model one request first, to measure its cold start. May be repeated.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("bench-results"),
    show_default=True,
    help="Folder for samples.jsonl and plot.html; a new run replaces them.",
)
def main(
    subjects: tuple[str, ...],
    endpoint: str,
    neurons: dict[str, str],
    *,
    demo: bool,
    speed: float,
    samples: int,
    cases: tuple[str, ...],
    cold: tuple[str, ...],
    out: Path,
) -> None:
    """Compare SUBJECTS, models or aliases from small to large (default: helexa/small helexa/large), with one question.

    Exit code: 0 all correct, 1 a wrong answer, 2 unavailable, 3 answered by a model other than the alias's target.
    """
    subjects = subjects or ("helexa/small", "helexa/large")
    wanted = [case for case in CASES if case.name in (cases or {case.name for case in CASES})]
    out.mkdir(parents=True, exist_ok=True)
    fleet = demo_fleet(speed) if demo else contextlib.nullcontext((endpoint.rstrip("/"), neurons))
    timeouts = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    identity = {"accept-encoding": "identity"}
    with (out / "samples.jsonl").open("w", encoding="utf-8") as jsonl:
        try:
            with fleet as (url, known), httpx.Client(timeout=timeouts, headers=identity, trust_env=False) as client:
                bench = Bench(client, url, known, _recorder(jsonl.write, jsonl.flush))
                interrupted = _run_until_interrupted(
                    bench, subjects, cold or (("Qwen/Qwen3-14B",) if demo else ()), wanted, samples
                )
        except UnavailableError as error:
            click.echo(f"bench: {error}", err=True)
            sys.exit(2)
    _report(bench, subjects, out)
    sys.exit(INTERRUPTED if interrupted else exit_code(bench.samples, bench.models.keys()))


def _run_until_interrupted(
    bench: Bench, subjects: tuple[str, ...], cold: tuple[str, ...], cases: list[Case], samples: int
) -> bool:
    """Whether Ctrl-C ended the run; what was measured until then is reported."""
    try:
        run(bench, subjects, cold, cases, samples)
    except KeyboardInterrupt:
        return True
    return False


def _recorder(write: Callable[[str], object], flush: Callable[[], object]) -> Callable[[Sample], None]:
    """Write each sample as a line at once, so that an interrupted run keeps its samples."""

    def record(sample: Sample) -> None:
        write(json.dumps(dataclasses.asdict(sample), ensure_ascii=False) + "\n")
        flush()

    return record


def _report(bench: Bench, subjects: tuple[str, ...], out: Path) -> None:
    (out / "plot.html").write_text(plot(bench.samples), encoding="utf-8")
    console = Console(markup=False, emoji=False, highlight=False)
    for part in tables(bench.samples, subjects, bench.models.keys()):
        console.print(part)
        console.print()
    console.print(f"every sample: {out / 'samples.jsonl'}   plot: {out / 'plot.html'}")


if __name__ == "__main__":
    main()
