"""An operator at a shell: runs commands with one cortex.toml, in this process, and looks at the files."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click.testing import CliRunner
from fakes.patience import SAFETY_NET_S
from fakes.process import running_cortex

from gateway.aliases.files.catalogue_files import CatalogueFiles
from gateway.cli import main
from gateway.cli.commands.aliases.alias_edit import AliasEditor
from gateway.cli.connection import Connection
from gateway.config.load import load

SMALL, MIDDLE, LARGE, COLD = "Qwen/Qwen3-1.7B", "Qwen/Qwen3-8B", "Qwen/Qwen3.6-27B", "Qwen/Qwen3-14B"
"""The demo's models; the last one is loaded nowhere."""


class Operator:
    """Runs commands with one cortex.toml, and a key unless that has a token."""

    def __init__(self, folder, key=None):
        self.key = key
        self.config = folder / "cortex.toml"
        self.models = folder / "models.toml"

    def __call__(self, *arguments, **env):
        """Run a command in this process, which is quicker than a new one."""
        environment = {"CORTEX_CONFIG": str(self.config), "COLUMNS": "200", "CORTEX_KEY": self.key} | env
        return CliRunner().invoke(main.main, [str(each) for each in arguments], env=environment)

    def done(self, *arguments, code=0, **env):
        """Run a command, check its exit code, and return its output."""
        result = self(*arguments, **env)
        assert result.exit_code == code, result.output
        return result.output

    @property
    def settings(self):
        return load(self.config, {}).settings

    @property
    def records(self):
        return CatalogueFiles.from_settings(self.settings)

    def lines(self):
        """The lines of the audit log, oldest first."""
        return [line.fields for line in self.records.audit_log.newest_first()][::-1]

    def edit(self, data):
        """Replace models.toml as an editor does: a new file, renamed over the old one."""
        new = self.models.with_suffix(".new")
        new.write_bytes(data)
        new.rename(self.models)

    def editor(self, report=print):
        connection = Connection(self.config, self.key)
        return AliasEditor(connection.file(), connection.address(), report)

    def health(self):
        """The gateway's `/health`; None without a gateway."""
        return self.editor().health()

    def in_force(self):
        """The hash of the file that the gateway has in force."""
        return self.health()["catalogue"]["digest"]


def key_in(printed):
    """The key that the demo printed."""
    return re.search(r"CORTEX_KEY=(ctx_\w+)", printed)[1]


def wait_until(condition):
    deadline = time.monotonic() + SAFETY_NET_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def running_demo(folder: Path) -> Iterator[Operator]:
    """An operator of a demo gateway in this folder."""
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 200) as process:
        yield Operator(folder, key_in(process.read_until("Ctrl-C ends it")))
        process.interrupt()
        process.end()
