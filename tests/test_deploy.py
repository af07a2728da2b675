"""The systemd units in deploy/: accepted by systemd, and in agreement with the defaults."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gateway.config.settings import GatewaySettings
from gateway.files import state_directory

STATE = state_directory.SYSTEM_DIRECTORY  # as it is outside of tests
DEPLOY = Path(__file__).parent.parent / "deploy"
UNITS = sorted([*DEPLOY.glob("*.service"), *DEPLOY.glob("*.socket")])


def read(name):
    """Sections and keys of a unit; a key that is given twice has a list of values."""
    sections, section = {}, None
    for line in (DEPLOY / name).read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            section.setdefault(key, []).append(value)
    return sections


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_accepts_the_units(tmp_path):
    """With the program at the place where this environment has it."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/cortex/.venv/bin/cortex", str(Path(sys.executable).with_name("cortex")))
        (tmp_path / unit.name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("unit", "name", "listen"),
    [
        ("cortex.socket", "api", GatewaySettings().listen),
        ("cortex-metrics.socket", "metrics", GatewaySettings().metrics_listen),
    ],
)
def test_socket_units_have_the_default_addresses_and_the_names_that_the_gateway_knows(unit, name, listen):
    sock = read(unit)["Socket"]
    assert sock["ListenStream"] == [str(listen)]
    assert sock["FileDescriptorName"] == [name]
    assert sock["Service"] == ["cortex.service"]


def test_service_may_write_the_default_state_directory():
    """With its files under /etc: audit log, history and takeover socket need no setting."""
    service = read("cortex.service")["Service"]
    assert [f"/var/lib/{name}" for name in service["StateDirectory"]] == [str(STATE)]


def test_reload_checks_the_files_before_it_replaces_the_process():
    """Systemd runs the commands in order, and stops at the first that fails."""
    service = read("cortex.service")["Service"]
    check, replace = service["ExecReload"]
    assert " check " in check
    assert replace == "/bin/kill -USR2 $MAINPID"
    assert service["ExecStartPre"] == [check]
    assert service["Type"] == ["notify"]
    assert int(service["TimeoutStopSec"][0]) > GatewaySettings().drain_seconds
