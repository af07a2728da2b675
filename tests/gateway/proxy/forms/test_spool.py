"""The spool: a file without a name, limited in size, and removed however the request ends."""

import contextlib
import tempfile
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Overloaded, ServiceUnavailable
from gateway.proxy.body.memory import BodyMemory, BodyReservation
from gateway.proxy.forms.spool import MEMORY_BYTES, SpoolStorage

MB = 1024**2
ROOMY = BodyMemory(1024 * MB)


@pytest.fixture
def spools(tmp_path):
    return SpoolStorage(tmp_path, 64 * MB)


def open_files_in(folder):
    """Return the open files of this process in `folder`, with or without a name."""
    links = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that lists them
            links.append(str(fd.readlink()))
    return [link for link in links if link.startswith(str(folder))]


async def read_all(spool):
    data = b""
    while piece := await spool.read(len(data)):
        data += piece
    return data


@given(st.lists(st.integers(0, 3 * MEMORY_BYTES // 2), max_size=5), st.integers(0, 8 * MEMORY_BYTES))
@settings(deadline=None, max_examples=30)
def test_bytes_are_read_from_any_offset(sizes, at):
    """In one piece or many, from memory or the file, and more than once."""
    pieces = [bytes([65 + index]) * size for index, size in enumerate(sizes)]

    async def check():
        async with SpoolStorage(None, 64 * MB).open(BodyReservation(ROOMY)) as spool:
            for piece in pieces:
                await spool.write(piece)
            whole = b"".join(pieces)
            assert spool.size == len(whole)
            assert await read_all(spool) == await read_all(spool) == whole
            offset = min(at, len(whole))
            assert whole[offset:].startswith(await spool.read(offset))

    trio.run(check)


async def test_small_uploads_need_no_file(spools, tmp_path):
    """Most requests are small."""
    async with spools.open(BodyReservation(ROOMY)) as spool:
        await spool.write(b"x" * MEMORY_BYTES)

        assert (spools.open_files, spools.on_disk_bytes) == (0, 0)
        assert open_files_in(tmp_path) == []


async def test_large_uploads_are_in_a_file_without_a_name(spools, tmp_path):
    """A killed process leaves nothing behind; memory stays small."""
    async with spools.open(BodyReservation(ROOMY)) as spool:
        for _ in range(160):
            await spool.write(b"x" * 65_536)
            assert len(spool._recent) <= MEMORY_BYTES

        assert (spools.open_files, len(open_files_in(tmp_path))) == (1, 1)
        assert list(tmp_path.iterdir()) == []
        assert spools.on_disk_bytes + len(spool._recent) == spool.size == 10 * MB
    assert (spools.open_files, spools.on_disk_bytes, open_files_in(tmp_path)) == (0, 0, [])


async def test_file_is_removed_when_its_request_is_cancelled(spools, tmp_path):
    """At any checkpoint of a write."""
    for steps in range(12):
        with trio.CancelScope() as scope:
            async with spools.open(BodyReservation(ROOMY)) as spool:
                for step in range(12):
                    if step == steps:
                        scope.cancel()
                    await spool.write(b"x" * MEMORY_BYTES)
        assert scope.cancelled_caught
        assert (spools.open_files, spools.on_disk_bytes, open_files_in(tmp_path)) == (0, 0, [])


async def test_reader_may_be_behind_the_writer(spools):
    """It reads the same bytes, in memory or on disk."""
    read = b""
    async with spools.open(BodyReservation(ROOMY)) as spool, trio.open_nursery() as nursery:

        async def write():
            for number in range(40):
                await spool.write(bytes([number]) * 65_536)

        nursery.start_soon(write)
        while len(read) < 40 * 65_536:
            read += await spool.read(len(read))
            await trio.lowlevel.checkpoint()

    assert read == b"".join(bytes([number]) * 65_536 for number in range(40))


async def test_all_spools_share_a_disk_limit(tmp_path):
    """Space that one spool frees can be used by another."""
    spools = SpoolStorage(tmp_path, 2 * MB)
    async with spools.open(BodyReservation(ROOMY)) as first:
        await first.write(b"x" * (3 * MB // 2))
        async with spools.open(BodyReservation(ROOMY)) as second:
            with pytest.raises(Overloaded, match="2 MiB") as caught:
                await second.write(b"x" * MB)
    async with spools.open(BodyReservation(ROOMY)) as third:
        await third.write(b"x" * (3 * MB // 2))

    assert caught.value.retry_after_s
    assert spools.on_disk_bytes == 0


async def test_memory_is_reserved_once(spools):
    """From the memory that all requests share; when that is full, the upload is rejected like any body."""
    bodies = BodyMemory(MEMORY_BYTES + 65_536)
    reservation, other = BodyReservation(bodies), BodyReservation(bodies)
    async with spools.open(reservation) as spool:
        for _ in range(40):
            await spool.write(b"x" * 65_536)
        assert spool.size == 40 * 65_536
        assert 0 < bodies.reserved_bytes <= MEMORY_BYTES + 65_536
        with pytest.raises(Overloaded, match="bodies of running requests"):
            async with spools.open(other) as late:
                await late.write(b"x" * MEMORY_BYTES)

    other.release()
    reservation.release()
    assert bodies.reserved_bytes == 0


async def test_failing_disk_is_a_503(tmp_path):
    """It is not the client's fault, and nothing stays open."""
    spools = SpoolStorage(tmp_path / "gone", 64 * MB)
    async with spools.open(BodyReservation(ROOMY)) as spool:
        with pytest.raises(ServiceUnavailable, match="cannot store the upload"):
            await spool.write(b"x" * MB)

    assert (spools.open_files, spools.on_disk_bytes) == (0, 0)


async def test_default_directory_is_the_systems():
    """TMPDIR changes it."""
    before = len(open_files_in(tempfile.gettempdir()))
    async with SpoolStorage(None, 64 * MB).open(BodyReservation(ROOMY)) as spool:
        await spool.write(b"x" * MB)

        assert len(open_files_in(tempfile.gettempdir())) == before + 1
