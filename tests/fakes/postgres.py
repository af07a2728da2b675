"""Debian's PostgreSQL, started for tests in a temporary directory. It listens on a Unix socket only."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

USER = "postgres"  # PostgreSQL refuses to run as root


@dataclass
class PostgresServer:
    """A running server. `new_database` makes an empty database for one test."""

    directory: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    @classmethod
    @contextmanager
    def running(cls) -> Iterator[PostgresServer]:
        """Start a server; stopped, and its directory removed, at the end."""
        # Not pytest's directory: other users cannot enter it, and a socket's path has at most 107 characters.
        directory = Path(tempfile.mkdtemp(prefix="cortex-pg-"))
        server = cls(directory)
        if os.geteuid() == 0:
            os.chown(directory, pwd.getpwnam(USER).pw_uid, -1)
        try:
            server.run("initdb", "-D", str(directory / "data"), "-A", "trust", "-U", USER, "-E", "UTF8", "--no-sync")
            server.start()
            yield server
            server.stop()
        finally:
            shutil.rmtree(directory)

    def start(self) -> None:
        options = f"-c listen_addresses='' -k {self.directory} -c fsync=off"
        log = str(self.directory / "log")
        self.run("pg_ctl", "start", "-w", "-D", str(self.directory / "data"), "-l", log, "-o", options)

    def stop(self) -> None:
        self.run("pg_ctl", "stop", "-w", "-m", "immediate", "-D", str(self.directory / "data"))

    def new_database(self) -> str:
        """The URL of an empty database."""
        name = f"test_{next(self._numbers)}"
        with psycopg.connect(host=str(self.directory), user=USER, dbname="postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://{USER}@/{name}?host={self.directory}"

    def run(self, program: str, *arguments: str) -> None:
        command = [str(_programs() / program), *arguments]
        user = USER if os.geteuid() == 0 else None
        subprocess.run(command, check=True, user=user, cwd=self.directory, stdout=subprocess.DEVNULL)


def _programs() -> Path:
    """Where Debian's package has its programs: those of the newest version."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    assert versions, "--postgres needs Debian's package postgresql"
    return versions[-1]
