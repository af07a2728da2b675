"""Catalogue files that tests replace, and a store that watches one."""

from contextlib import asynccontextmanager

import trio

SMALL = '[aliases]\nlarge = "small-model"\n'
LARGE = '[aliases]\nlarge = "large-model"\n'
FAULTY = '[aliases]\nlarge = "x"\nx = ""\n'
POLL_NEVER_S = 3600  # longer than any test: only an event can cause a reload


def target(store):
    return store.current.aliases["large"].target


def rename_over(path, text):
    """Save as most editors and `mv` do."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


@asynccontextmanager
async def watching(store):
    async with trio.open_nursery() as nursery:
        await nursery.start(store.watch)
        yield
        nursery.cancel_scope.cancel()
