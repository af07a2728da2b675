"""Gateway processes as a service manager runs them: with its sockets, its notify socket, and its restarts."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.process import environment

FIRST_FD = 50  # above those that a process needs for itself
# exec keeps the process id, which LISTEN_PID must have; 3 and 4 are the file descriptors that the protocol demands.
WITH_SOCKETS = 'export LISTEN_PID=$$; exec "$@" 3<&{api} 4<&{metrics}'


class Manager:
    """What systemd does for one service: it has the sockets, listens to notifications, starts and stops processes."""

    def __init__(self, folder, config):
        self.config = config
        self.messages = []  # (process id, text), in the order of arrival
        self.main_pid = None
        self.log_path = folder / "gateway.log"
        self._log = self.log_path.open("ab")
        self._notify_path = folder / "notify"
        self._notify = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED):
        """Read notifications, with the sender's process id, until cancelled."""
        self._notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        await self._notify.bind(str(self._notify_path))
        task_status.started()
        while True:
            data, ancillary, _, _ = await self._notify.recvmsg(4096, socket.CMSG_SPACE(12))
            pid = int.from_bytes(ancillary[0][2][:4], sys.byteorder)
            for line in data.decode().splitlines():
                self.messages.append((pid, line))
                if line.startswith("MAINPID=") and pid == self.main_pid:
                    self.main_pid = int(line.removeprefix("MAINPID="))

    async def start(self, *options, sockets=None, **env):
        """Start a process, as the main one, and wait for its READY=1. `sockets` are those of api and metrics."""
        process = await self.spawn(*options, sockets=sockets, **env)
        self.main_pid = process.pid
        await self.ready(process)
        return process

    async def spawn(self, *options, sockets=None, **env):
        command = [sys.executable, "-m", "gateway.cli", "serve", "-c", str(self.config), *map(str, options)]
        fds = ()
        if sockets is not None:
            fds = tuple(sock.fileno() for sock in sockets)
            script = WITH_SOCKETS.format(api=fds[0], metrics=fds[1])
            command = ["bash", "-c", script, "bash", *command]
            env |= {"LISTEN_FDS": "2", "LISTEN_FDNAMES": "api:metrics"}
        variables = environment(PYTHONUNBUFFERED="1", NOTIFY_SOCKET=str(self._notify_path), **env)
        return await trio.lowlevel.open_process(command, env=variables, pass_fds=fds, stderr=self._log)

    async def ready(self, process):
        """Wait until the process has reported that it serves."""
        await until(lambda: (process.pid, "READY=1") in self.messages or process.poll() is not None)
        assert process.poll() is None, self.log

    def sent(self, pid):
        """What this process has reported."""
        return [text for sender, text in self.messages if sender == pid]

    @property
    def log(self):
        return self.log_path.read_text()

    def close(self):
        self._notify.close()
        self._log.close()


async def stopped(process):
    """End a process as `systemctl stop` does; returns its exit code."""
    process.send_signal(signal.SIGTERM)
    return await ended(process)


async def ended(process):
    """The exit code of a process that ends by itself."""
    with trio.fail_after(SAFETY_NET_S):
        return await process.wait()


def listening_sockets():
    """Two sockets as a service manager opens them, with file descriptors that no process needs for itself."""
    sockets = []
    for _ in range(2):
        with socket.create_server(("127.0.0.1", 0), backlog=2048) as sock:
            sockets.append(socket.socket(fileno=fcntl.fcntl(sock, fcntl.F_DUPFD_CLOEXEC, FIRST_FD)))
    return sockets


@asynccontextmanager
async def supervised(folder, config):
    """A service manager for the gateway with this cortex.toml; kills what is left at the end."""
    manager = Manager(folder, config)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(manager.run)
            try:
                yield manager
            finally:
                for pid in {pid for pid, _ in manager.messages} | {manager.main_pid} - {None}:
                    _kill(pid)
            nursery.cancel_scope.cancel()
    finally:
        manager.close()


def _kill(pid):
    """Kill a process that has reported to the manager, unless it has ended and the number belongs to another one."""
    try:
        if b"gateway.cli" in Path(f"/proc/{pid}/cmdline").read_bytes():
            os.kill(pid, signal.SIGKILL)
    except (FileNotFoundError, ProcessLookupError):
        pass
