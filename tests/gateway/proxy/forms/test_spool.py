"""Bytes kept to be read again: in a file without a name, bounded, and gone on every way out."""

import contextlib
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Overloaded, ServiceUnavailable
from gateway.proxy.body_memory import BodyMemory
from gateway.proxy.forms.spool import MEMORY_BYTES, SpoolStorage

MB = 1024**2
ROOMY = BodyMemory(1024 * MB)


@pytest.fixture
def spools(tmp_path):
    return SpoolStorage(tmp_path, 64 * MB)


def open_files_in(folder):
    """Files of ours that are open in there, with or without a name."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that listed them
            links.append(str(fd.readlink()))
    return [link for link in links if link.startswith(str(folder))]


async def read_all(spool):
    data = b""
    while piece := await spool.read(len(data)):
        data += piece
    return data


@given(st.lists(st.integers(0, 3 * MEMORY_BYTES // 2), max_size=5), st.integers(0, 8 * MEMORY_BYTES))
@settings(deadline=None, max_examples=30)
def test_what_was_written_is_read_from_any_place(sizes, at):
    """In one piece or many, from memory or from the file, more than once."""
    pieces = [bytes([65 + index]) * size for index, size in enumerate(sizes)]

    async def check():
        async with SpoolStorage(None, 64 * MB).open(ROOMY.reservation()) as spool:
            for piece in pieces:
                await spool.write(piece)
            whole = b"".join(pieces)
            assert spool.size == len(whole)
            assert await read_all(spool) == await read_all(spool) == whole
            place = min(at, len(whole))
            assert whole[place:].startswith(await spool.read(place))

    trio.run(check)


async def test_a_little_needs_no_file(spools, tmp_path):
    """Most requests are small."""
    async with spools.open(ROOMY.reservation()) as spool:
        await spool.write(b"x" * MEMORY_BYTES)

        assert (spools.open_files, spools.on_disk_bytes) == (0, 0)
        assert open_files_in(tmp_path) == []


async def test_more_is_in_a_file_without_a_name_and_not_in_memory(spools, tmp_path):
    """A process that is killed leaves nothing behind."""
    async with spools.open(ROOMY.reservation()) as spool:
        for _ in range(160):
            await spool.write(b"x" * 65_536)
            assert len(spool._recent) <= MEMORY_BYTES

        assert (spools.open_files, len(open_files_in(tmp_path))) == (1, 1)
        assert list(tmp_path.iterdir()) == []
        assert spools.on_disk_bytes + len(spool._recent) == spool.size == 10 * MB
    assert (spools.open_files, spools.on_disk_bytes, open_files_in(tmp_path)) == (0, 0, [])


async def test_file_goes_when_its_request_is_cancelled(spools, tmp_path):
    """In the midst of a write, at any of its checkpoints."""
    for steps in range(12):
        with trio.CancelScope() as scope:
            async with spools.open(ROOMY.reservation()) as spool:
                for step in range(12):
                    if step == steps:
                        scope.cancel()
                    await spool.write(b"x" * MEMORY_BYTES)
        assert scope.cancelled_caught
        assert (spools.open_files, spools.on_disk_bytes, open_files_in(tmp_path)) == (0, 0, [])


async def test_reader_may_be_behind_the_writer(spools):
    """It reads the same bytes, whichever side of the disk they are on by then."""
    read = b""
    async with spools.open(ROOMY.reservation()) as spool, trio.open_nursery() as nursery:

        async def write():
            for number in range(40):
                await spool.write(bytes([number]) * 65_536)

        nursery.start_soon(write)
        while len(read) < 40 * 65_536:
            read += await spool.read(len(read))
            await trio.lowlevel.checkpoint()

    assert read == b"".join(bytes([number]) * 65_536 for number in range(40))


async def test_all_of_them_together_have_a_limit(tmp_path):
    """Each upload is within its own; the disk is shared. What one gives back another may have."""
    spools = SpoolStorage(tmp_path, 2 * MB)
    async with spools.open(ROOMY.reservation()) as first:
        await first.write(b"x" * (3 * MB // 2))
        async with spools.open(ROOMY.reservation()) as second:
            with pytest.raises(Overloaded, match="2 MiB") as caught:
                await second.write(b"x" * MB)
    async with spools.open(ROOMY.reservation()) as third:
        await third.write(b"x" * (3 * MB // 2))

    assert caught.value.retry_after_s
    assert spools.on_disk_bytes == 0


async def test_memory_is_taken_once_however_much_passes_through_it(spools):
    """From the room that all requests share; when that is full the upload is refused like any body."""
    bodies = BodyMemory(MEMORY_BYTES + 65_536)
    with bodies.reservation() as reservation:
        async with spools.open(reservation) as spool:
            for _ in range(40):
                await spool.write(b"x" * 65_536)
            assert spool.size == 40 * 65_536
            assert 0 < bodies.reserved_bytes <= MEMORY_BYTES + 65_536
            with bodies.reservation() as other, pytest.raises(Overloaded, match="bodies of running requests"):
                async with spools.open(other) as late:
                    await late.write(b"x" * MEMORY_BYTES)

    assert bodies.reserved_bytes == 0


async def test_disk_that_fails_is_a_503_and_leaves_nothing(tmp_path):
    """It is not the client's fault, and no traceback is shown."""
    spools = SpoolStorage(tmp_path / "gone", 64 * MB)
    async with spools.open(ROOMY.reservation()) as spool:
        with pytest.raises(ServiceUnavailable, match="cannot store the upload"):
            await spool.write(b"x" * MB)

    assert (spools.open_files, spools.on_disk_bytes) == (0, 0)


async def test_system_directory_serves_where_none_is_configured():
    """TMPDIR moves it, as everywhere."""
    before = len(open_files_in(tempfile.gettempdir()))
    async with SpoolStorage(None, 64 * MB).open(ROOMY.reservation()) as spool:
        await spool.write(b"x" * MB)

        assert len(open_files_in(tempfile.gettempdir())) == before + 1
