#!/usr/bin/env python3
"""flake8-async in half its time: its six visitors of a file share one table of positions.

flake8-async makes that table again for each visitor, because a visitor may change the file; ours only report.
"""

from __future__ import annotations

from collections.abc import Iterator

from flake8_async import main
from flake8_async.base import Error
from flake8_async.runner import Flake8AsyncRunner_cst
from libcst import MetadataWrapper


def report(self: Flake8AsyncRunner_cst) -> Iterator[Error]:
    """What `Flake8AsyncRunner_cst.run` does without autofixes."""
    wrapper = MetadataWrapper(self.module, unsafe_skip_copy=True)
    for visitor in (*self.utility_visitors, *self.visitors):
        wrapper.visit(visitor)
    yield from self.state.problems
    self.noqas = self.state.noqas


if __name__ == "__main__":
    Flake8AsyncRunner_cst.run = report
    raise SystemExit(main())
