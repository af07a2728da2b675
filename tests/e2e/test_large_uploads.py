"""A hundred megabytes through a gateway process: none of it stays in memory, by either way."""

import hashlib
import random
import re
import socket
import struct
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
from fakes.forms import CONTENT_TYPE, a_file, a_form, a_part
from fakes.patience import SAFETY_NET_S
from fakes.process import running_cortex
from fakes.scripted import listening, with_length

SIZE = 100 * 1024**2
GROWTH_LIMIT_KIB = 16 * 1024  # a sixth of the body; 1 to 2 MiB were measured
PIECE = random.Random(2026).randbytes(1 << 20)  # noqa: S311 - repeatable, not secret
MODEL = a_part(b"model", b"m")


class Engine:
    """Lists one model and reads forms: their lengths and hashes. `cut` counts incomplete ones."""

    def __init__(self):
        self.swallowed = []
        self.cut = 0
        self.begun = trio.Event()

    async def __call__(self, stream):
        head, _, body = (await self._until(stream, b"\r\n\r\n")).partition(b"\r\n\r\n")
        if not head:
            return  # the peer closed without a request
        if head.startswith(b"GET"):
            await stream.send_all(with_length(b'{"data":[{"id":"m"}]}'))
            return
        left = int(re.search(rb"content-length: (\d+)", head)[1]) - len(body)
        hashed, size = hashlib.sha256(body), len(body)
        self.begun.set()
        while left > 0 and (piece := await stream.receive_some(1 << 18)):
            hashed.update(piece)
            left, size = left - len(piece), size + len(piece)
        if left:
            self.cut += 1
            return
        self.swallowed.append((size, hashed.hexdigest()))
        await stream.send_all(with_length(b'{"text":"Tbilisi"}'))

    async def _until(self, stream, end):
        data = b""
        while end not in data:
            piece = await stream.receive_some(65_536)
            if not piece:
                break
            data += bytes(piece)
        return data


class CortexProcess:
    """A gateway in a process of its own; the client writes raw bytes."""

    def __init__(self, port, pid, spool_dir):
        self.port = port
        self.pid = pid
        self.spool_dir = spool_dir

    def peak_kib(self):
        """Its peak memory."""
        return int(re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{self.pid}/status").read_text())[1])

    def open_files(self):
        """Its open files in the spool's directory."""
        found = []
        for link in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed after the listing
                found.append(link.readlink())
        return [path for path in found if path.is_relative_to(self.spool_dir)]

    @asynccontextmanager
    async def connected(self, length):
        """A connection with an announced upload of this length."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            lines = [b"POST /v1/audio/transcriptions HTTP/1.1", b"host: cortex", b"connection: close"]
            lines += [b"content-type: " + CONTENT_TYPE, b"content-length: %d" % length, b"", b""]
            await stream.send_all(b"\r\n".join(lines))
            yield stream

    async def upload(self, before, after):
        """Send a form with the hundred megabytes between these bytes: the answer, and the body's hash."""
        hashed = hashlib.sha256(before)
        async with self.connected(len(before) + SIZE + len(after)) as stream:
            await stream.send_all(before)
            for _ in range(SIZE // len(PIECE)):
                hashed.update(PIECE)
                await stream.send_all(PIECE)
            hashed.update(after)
            await stream.send_all(after)
            answer = b"".join([bytes(piece) async for piece in stream])
        return answer, hashed.hexdigest()


@pytest.fixture
async def engine():
    return Engine()


@pytest.fixture
async def cortex(tmp_path, engine):
    (tmp_path / "spool").mkdir()
    async with listening(engine) as url:
        (tmp_path / "cortex.toml").write_text(
            f"""
            [gateway]
            listen = "127.0.0.1:0"
            metrics_listen = "127.0.0.1:0"
            body_limit_mb = 200
            spool_dir = "spool"
            [log]
            format = "json"
            [deadlines]
            connect_seconds = {SAFETY_NET_S}
            [poll]
            interval_seconds = 60
            timeout_seconds = {SAFETY_NET_S}
            [[neurons]]
            name = "engine"
            endpoint = "{url}"
            kind = "openai"
            """
        )
        with running_cortex("serve", "-c", tmp_path / "cortex.toml") as process:
            listening_at = await trio.to_thread.run_sync(process.log_line, "listening", abandon_on_cancel=True)
            port = int(re.search(r'"api":"127.0.0.1:(\d+)"', listening_at)[1])
            yield CortexProcess(port, process.popen.pid, tmp_path / "spool")


FORMS = {
    "model first": a_form(MODEL, a_file(b"@")).split(b"@"),
    "file first": a_form(a_file(b"@"), MODEL).split(b"@"),
}


@pytest.mark.parametrize("order", FORMS)
async def test_hundred_megabytes_pass_with_bounded_memory(cortex, engine, order):
    """Streamed to the neuron, or by way of the disk; the neuron gets every byte."""
    before, after = FORMS[order]
    small, _ = await _whole(cortex, before + b"x" + after)
    peak_kib = cortex.peak_kib()
    with trio.fail_after(SAFETY_NET_S):
        answer, digest = await cortex.upload(before, after)

    assert b"200 OK" in small
    assert b"200 OK" in answer
    assert engine.swallowed[-1] == (len(before) + SIZE + len(after), digest)
    assert cortex.peak_kib() - peak_kib < GROWTH_LIMIT_KIB
    with trio.fail_after(SAFETY_NET_S):
        while cortex.open_files():
            await trio.sleep(0.01)


async def _whole(cortex, body):
    async with cortex.connected(len(body)) as stream:
        await stream.send_all(body)
        return b"".join([bytes(piece) async for piece in stream]), body


@pytest.mark.parametrize("order", FORMS)
@pytest.mark.parametrize("how", ["fin", "rst"])
async def test_upload_cancelled_midway_leaves_nothing(cortex, engine, order, how):
    """A neuron that has begun sees its connection end in the middle of the body; the file on disk is gone."""
    before, after = FORMS[order]
    async with cortex.connected(len(before) + SIZE + len(after)) as stream:
        await stream.send_all(before)
        for _ in range(20):
            await stream.send_all(PIECE)
        with trio.fail_after(SAFETY_NET_S):
            if order == "model first":
                await engine.begun.wait()
            else:
                while not cortex.open_files():
                    await trio.sleep(0.01)
        if how == "rst":
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with trio.fail_after(SAFETY_NET_S):
        while cortex.open_files() or engine.cut < (order == "model first"):
            await trio.sleep(0.01)

    assert engine.swallowed == []
    assert (await _whole(cortex, before + b"x" + after))[0].startswith(b"HTTP/1.1 200 OK")
