"""A demo whose console has the events of an hour in seconds: ticks follow each other at once.

Every tick has what three seconds of the demo's traffic have at most: requests that ended, a line of the log for each,
and the fleet, the aliases and the problems as if they had changed; every third tick is a point of the charts. The ring
of the feed has ten minutes of them, as always. The requests are records only. Ticks come in batches: after one there
is a tick each second, as always, until the next is asked for.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path

from fakes.browser import Demo
from fakes.process import running_program

SECONDS_PER_TICK = 3  # a page draws once per tick: fewer ticks with more in them take less time
BATCH_TICKS, BATCHES = 1200 // SECONDS_PER_TICK, 3  # an hour
REQUESTS_PER_TICK = 7 * SECONDS_PER_TICK  # all of them are listed
TICK_S = 0.002
TESTS = Path(__file__).parent.parent
PROGRAM = f"import sys; sys.path.insert(0, {str(TESTS)!r}); from fakes.console_hour import main; main()"


@dataclass
class HourDemo(Demo):
    """Such a demo; its ticks begin with the first page, and with the first batch."""

    def next_batch(self) -> None:
        """Have the next `BATCH_TICKS` come at once."""
        os.kill(self.pid, signal.SIGUSR1)


@contextmanager
def demo_of_an_hour(folder):
    """A process for as long as the block lasts."""
    with running_program(PROGRAM, folder) as process:
        text = process.read_until("Ctrl-C")
        api = re.search(r"cortex demo: (http://\S+)", text)[1]
        admin, key = re.search(r"in a browser: (http://\S+)/ \(key: (\S+)\)", text).groups()
        yield HourDemo(api, admin, key, folder, process.popen.pid)


def main():
    """The program."""
    from gateway.cli.main import main as cortex  # noqa: PLC0415 - only this program needs them
    from gateway.server.console import event_feed, event_sources, figures  # noqa: PLC0415 - as above

    usual_s = event_feed.TICK_S
    changes, ended = event_sources.RequestSource.changes, count()
    batch = iter(())

    def begin_batch(*_):
        nonlocal batch
        batch = iter(range(BATCH_TICKS))
        event_feed.TICK_S, figures.INTERVAL_S = TICK_S, 10 / SECONDS_PER_TICK * TICK_S

    def changes_of_a_tick(source):
        if next(batch, None) is None:
            event_feed.TICK_S = usual_s
        else:
            for number in islice(ended, REQUESTS_PER_TICK):
                _end_request(source._requests, number)
        return changes(source)

    signal.signal(signal.SIGUSR1, begin_batch)
    event_feed.RING_CHUNKS //= SECONDS_PER_TICK
    event_sources.RequestSource.changes = changes_of_a_tick
    event_sources.StateSource.changes = event_sources.StateSource.everything
    cortex(["demo", "--port", "0", "--dir", sys.argv[1]])


def _end_request(log, number):
    """One that streamed from a neuron, as far as its record tells."""
    from fakes.recorded import recorded  # noqa: PLC0415 - as above

    from gateway.telemetry.recent_log import recent_log  # noqa: PLC0415 - as above

    with recorded(log, f"{number:032x}", "/v1/chat/completions") as record:
        record.routing.alias = "helexa/small"
        record.routing.target = record.routing.model = "Qwen/Qwen3-1.7B"
        record.routing.node = "benjy"
        record.stream, record.status, record.outcome = True, 200, "ok"
    recent_log.keep({"event": "replayed", "level": "info", "timestamp": "2027-01-01T00:00:00Z", "number": number})
