"""What an engine prints: bounded in memory, rotated on disk, followed as it comes."""

from __future__ import annotations

from pathlib import Path

import trio

from neuron.agent.process.engine_output import FILE_BYTES, KEPT_BYTES, EngineOutput

LINE = b"x" * 1023 + b"\n"


def test_file_is_rotated_and_one_older_one_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.log"
    output = EngineOutput(path)
    for _ in range(3 * FILE_BYTES // (64 * len(LINE))):
        output.feed(64 * LINE)
    output.close_run()

    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.log", "m.log.1"]
    assert all(file.stat().st_size <= FILE_BYTES for file in tmp_path.iterdir())


def test_file_that_was_there_before_counts(tmp_path: Path) -> None:
    """A neuron that is restarted often does not write a file without end."""
    path = tmp_path / "m.log"
    path.write_bytes(bytes(FILE_BYTES - 10))
    output = EngineOutput(path)
    output.feed(LINE)
    output.close_run()

    assert path.read_bytes() == LINE
    assert (tmp_path / "m.log.1").stat().st_size == FILE_BYTES - 10


def test_memory_is_bounded() -> None:
    output = EngineOutput(None)
    for _ in range(4 * KEPT_BYTES // len(LINE)):
        output.feed(LINE)

    assert KEPT_BYTES <= len(output._tail) <= 2 * KEPT_BYTES
    assert len(output.recent()) == KEPT_BYTES


def test_tail_is_of_the_last_run() -> None:
    output = EngineOutput(None)
    for run in (b"first", b"second"):
        output.begin_run("engine")
        output.feed(run)

    assert (b"first" in output.tail(), b"second" in output.tail()) == (False, True)
    assert b"first" in output.recent()


def test_output_stays_readable_when_its_file_cannot_be_written(tmp_path: Path) -> None:
    output = EngineOutput(tmp_path / "gone" / "m.log")
    output.feed(LINE)

    assert output.recent() == LINE
    assert "cannot write" in str(output.file_error)


async def test_slow_reader_skips_what_was_dropped(autojump_clock) -> None:
    output = EngineOutput(None)
    output.feed(b"before")
    follower = aiter(output.follow(6))
    assert await anext(follower) == b"before"
    for _ in range(4 * KEPT_BYTES // len(LINE)):
        output.feed(LINE)
    assert len(await anext(follower)) <= 2 * KEPT_BYTES
    with trio.move_on_after(10) as waiting:
        await anext(follower)
    assert waiting.cancelled_caught
