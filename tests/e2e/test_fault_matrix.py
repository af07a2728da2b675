"""What a client gets when a neuron misbehaves: every fault of the simulated neuron, with and without a stream, with one
replica and with two. The observations are the table in docs/reliability.md; `--write-docs` writes it.

In memory, where hours take no time and times are exact; faults that reset a connection run on a socket.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import pytest
import trio
from fakes.in_memory import Client
from fakes.running import SMALL, running_gateway
from fakes.world import Answered, a_sim, a_sim_model, a_world, profile_of

from neuron.simulated import PROBE, PROBE_ANSWER, faults
from neuron.simulated.faults import AnyFault, SimFault
from neuron.simulated.fleet import neuron

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
REWRITE = "pytest tests/e2e/test_fault_matrix.py --write-docs"
BEGIN, END = "<!-- begin: written by tests/e2e/test_fault_matrix.py --write-docs -->", "<!-- end -->"
HEAD = "| a neuron … | one replica | one, stream | two replicas | two, stream |\n| --- | --- | --- | --- | --- |\n"

M = a_sim_model("lab/m")
PROBE_S = 1.02
POLL_S = 10.0


@dataclass(frozen=True)
class Row:
    """One fault. `when` it takes effect: before the first token, later, never (an oddity), when reported, in a load.

    `only`: the fault has another effect, or none, on the other kind of answer, which is in another row.
    """

    label: str
    fault: SimFault
    when: str = "before"
    only: str = "both"
    on_sockets: bool = False

    def concerns(self, *, stream):
        return self.only in ("both", "stream" if stream else "whole")


ROWS = (
    # Before the first token.
    Row("hangs up without an answer", faults.Refuse()),
    Row("resets without an answer", faults.Refuse(reset=True), on_sockets=True),
    Row("hangs up when it is connected to", faults.RefuseAccept()),
    Row("resets when it is connected to", faults.RefuseAccept(reset=True), on_sockets=True),
    Row("answers 500", faults.HttpError()),
    Row("answers 500 in plain text and hangs up", faults.HttpError(text="Internal Server Error", plain=True)),
    Row("answers 503, Retry-After 7", faults.HttpError(status=503, text="queue full", retry_after_s=7)),
    Row("answers 429, Retry-After 7", faults.HttpError(status=429, text="slow down", retry_after_s=7)),
    Row("says `not loaded` of what it lists", faults.NotLoaded()),
    Row("takes the request and says nothing, ever", faults.Hang()),
    Row("says nothing for 20 s, then answers", faults.Hang(seconds=20)),
    Row("answers nothing any more, polls included", faults.Unresponsive()),
    Row("answers in something that is not HTTP", faults.Garbage()),
    Row("answers with 128 KiB of headers", faults.BigHeaders()),
    Row("breaks off after its headers", faults.Drop(after=0), only="stream"),
    Row("breaks off after the role chunk", faults.Drop(after=1), only="stream"),
    Row("breaks off inside the role chunk", faults.Drop(after=0, cut="event"), only="stream"),
    Row("sends a malformed chunk first", faults.MalformedChunk(after=0)),
    Row("sends a malformed chunk after the role chunk", faults.MalformedChunk(after=1), only="stream"),
    # After the first token.
    Row("breaks off half-way through its body", faults.Drop(), "later", only="whole"),
    Row("resets half-way through its body", faults.Drop(how="rst"), "later", only="whole", on_sockets=True),
    Row("breaks off after two tokens", faults.Drop(after=3), "later", only="stream"),
    Row("resets after two tokens", faults.Drop(after=3, how="rst"), "later", only="stream", on_sockets=True),
    Row("breaks off inside a chunk", faults.Drop(after=2, cut="chunk"), "later", only="stream"),
    Row("breaks off inside an event", faults.Drop(after=2, cut="event"), "later", only="stream"),
    Row("sends a malformed chunk after two tokens", faults.MalformedChunk(after=3), "later", only="stream"),
    # Errors in the request.
    Row("answers 400 with a number for a code", faults.HttpError(status=400, text="no", numeric=True), "later"),
    Row("answers 422, as FastAPI does", faults.HttpError(status=422, text="extra inputs", detail=True), "later"),
    # Oddities.
    Row("is silent for 30 s after the role chunk", faults.SilentPrefill(seconds=30), "never"),
    Row("takes ten times as long", faults.Slow(), "never"),
    Row("sends its headers with the first token", faults.LateHeaders(), "never"),
    Row("sends a 103 first", faults.Informational(), "never"),
    Row("never sends `[DONE]`", faults.NoDone(), "never"),
    Row("has its usage elsewhere", faults.OddUsage(), "never"),
    Row("says another model's name", faults.WrongModel(), "never"),
    Row("says `created` as a float", faults.FloatCreated(), "never"),
    Row("takes any model's name", faults.AnyModel(), "never"),
    Row("does not notice a client that left", faults.RunsOn(), "never"),
    Row("ends its answer by closing", faults.UntilClose(), "never"),
    Row("has a content-length on its stream", faults.ContentLength(), "never"),
    Row("closes after every answer, unannounced", faults.CloseAfter(), "never"),
    Row("resets after every answer, unannounced", faults.CloseAfter(reset=True), "never", on_sockets=True),
    Row("closes a connection that was idle for 5 s", faults.CloseIdle(), "never"),
    Row("closes a connection after one answer", faults.CloseEvery(requests=1), "never"),
    # Reported by the neuron.
    Row("reports the model `poisoned`", faults.ReportStatus(), "reported"),
    Row("reports the model `recovering`", faults.ReportStatus(status="recovering"), "reported"),
    Row("reports that it cannot serve the model", faults.Unservable(), "reported"),
    Row("`/health` fails", faults.EndpointFails(path="/health"), "reported"),
    Row("`/models` fails", faults.EndpointFails(path="/models"), "reported"),
    # During a load.
    Row("fails to load the model", faults.LoadFails(seconds=2), "load"),
    Row("never ends loading the model", faults.LoadHangs(), "load"),
)  # fmt: skip

# Sent once the gateway has noticed: `/models` by the next poll, a neuron that is down by the third.
NOTICED_AFTER_S = 3 * POLL_S + 1


def test_every_fault_has_its_row():
    """A new fault must be in the table."""
    assert {type(row.fault) for row in ROWS} == set(get_args(AnyFault))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.label)
def test_client_gets_what_the_table_in_the_docs_says(row, tmp_path, observed):
    """With two replicas, a fault before the first token is invisible."""
    cells = [
        _see(row, replicas, stream=stream, folder=tmp_path) if row.concerns(stream=stream) else "-"
        for replicas in (1, 2)
        for stream in (False, True)
    ]
    if row.when != "later":
        assert {cell.partition(",")[0] for cell in cells[2:]} <= {"answered", "-"}
    line = " | ".join(["", row.label, *cells, ""]).strip()
    observed[row.label] = line
    if not observed.writing:
        assert line in DOCUMENT.read_text().splitlines(), f"{REWRITE} tells what has changed"


def test_table_in_the_docs_has_no_other_rows(request):
    """The table has only what the tests observe."""
    if request.config.getoption("--write-docs"):
        pytest.skip("it is being written")
    documented = [line for line in _table().splitlines() if line.startswith("| ")][2:]
    assert [line.split(" | ")[0].removeprefix("| ") for line in documented] == [row.label for row in ROWS]


# Observing ............................................................................................................


def _see(row, replicas, *, stream, folder):
    if row.on_sockets:
        return trio.run(_see_on_sockets, row, replicas, stream, folder)
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_see_in_memory, row, replicas, stream, clock=clock)


async def _see_in_memory(row, replicas, stream):
    loaded = () if row.when == "load" else (M.id,)
    sims = [a_sim(name, M, loaded=loaded) for name in "ab"[:replicas]]
    async with a_world(*sims, profiles=(profile_of(M),)) as world:
        sims[0].faults.add(row.fault)
        if row.when == "reported":
            await trio.sleep(NOTICED_AFTER_S)
        began = trio.current_time()
        answered = await world.ask(M.id, stream=stream)
        usual_s = PROBE_S + (M.load_seconds if row.when == "load" else 0.0)
        return describe(answered, took_s=answered.ended_at - began, usual_s=usual_s)


async def _see_on_sockets(row, replicas, stream, folder):
    sims = [neuron(name, [24576], [SMALL], speed=100) for name in "ab"[:replicas]]
    async with running_gateway(folder, sims) as running:
        sims[0].faults.add(row.fault)
        async with await trio.open_tcp_stream("127.0.0.1", running.port) as connection:
            return describe(await _send(Client(connection), stream=stream), took_s=0.0, usual_s=0.0)


async def _send(client, *, stream):
    await client.send(stream=stream, messages=[{"role": "user", "content": PROBE}])
    status, headers = await client.head()
    answered = Answered(status, headers)
    try:
        while True:
            piece = await client.piece(headers)
            if not piece:
                break
            answered.pieces.append((trio.current_time(), piece))
            if len(answered.body) == int(headers.get("content-length", -1)):
                break
        answered.whole = len(answered.body) == int(headers.get("content-length", len(answered.body)))
    except (EOFError, trio.BrokenResourceError):
        answered.whole = False
    return answered


# Describing ...........................................................................................................


def describe(answered, *, took_s, usual_s):
    """The client's result, in the words of the table."""
    answer = _describe_stream(answered) if answered.is_stream else _describe_whole(answered)
    if answer == "answered":
        return answer + (f", {took_s - usual_s:.0f} s late" if took_s - usual_s >= 1 else "")
    return answer + (f", after {took_s:.0f} s" if took_s >= 2 else "")


def _describe_stream(answered):
    assert answered.whole
    if b'"error"' not in answered.body:
        assert answered.text == PROBE_ANSWER
        return "answered"
    assert b"[DONE]" not in answered.body
    assert answered.body.count(b'"error"') == 1
    *before, last = [event for event in answered.body.split(b"\n\n") if event.startswith(b"data: ")]
    code = json.loads(last.removeprefix(b"data: "))["error"]["code"]
    whole = [event for event in before if event.endswith(b"}")]
    tokens = sum(b'"content":"' in event and b'"content":""' not in event for event in whole)
    seen = [f"{tokens} token{'s' * (tokens > 1)}" if tokens else "200"] + ["half an event"] * (len(before) > len(whole))
    return f"{', '.join(seen)}, then error event `{code}`"


def _describe_whole(answered):
    if not answered.whole:
        return "200, and the body breaks off"
    if answered.status == 200:
        assert answered.text == PROBE_ANSWER
        return "answered"
    error = json.loads(answered.body).get("error")
    what = "in the engine's own words" if error is None else f"`{error['code']}`"
    if error is not None and error.get("param") is not None:
        what += f" (`{error['param']}`)"
    patience = answered.headers.get("retry-after")
    return f"{answered.status} {what}" + ("" if patience is None else f", Retry-After {patience}")


# The document .........................................................................................................


def _table():
    return DOCUMENT.read_text().partition(BEGIN)[2].partition(END)[0]


class Observed(dict):
    """Lines by label. `writing`: they are written to the document."""

    writing = False


@pytest.fixture(scope="module")
def observed(request):
    """The observations so far; with `--write-docs` they are written to the document at the end."""
    seen = Observed()
    seen.writing = request.config.getoption("--write-docs")
    yield seen
    if seen.writing:
        before, _, rest = DOCUMENT.read_text().partition(BEGIN)
        rows = "\n".join(seen[row.label] for row in ROWS)
        DOCUMENT.write_text(f"{before}{BEGIN}\n\n{HEAD}{rows}\n\n{END}{rest.partition(END)[2]}")
