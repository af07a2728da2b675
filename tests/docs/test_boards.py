"""Grafana boards and Prometheus rules: Debian's Prometheus scrapes a demo and a neuron; every expression has data."""

import json
import re
import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager

import grafana_boards
import httpx
import pytest
import yaml
from fakes.agents_host import engine_table, model
from fakes.console_page import TOP
from fakes.operator import Operator, wait_until
from fakes.patience import SAFETY_NET_S
from fakes.process import running_cortex

RULES = TOP / "deploy" / "prometheus"
BOARDS = TOP / "deploy" / "grafana"
METRIC = re.compile(r"\b(?:cortex|neuron|process)_\w+|\bjob\w*:\w+:\w+")
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs Prometheus: apt-get install prometheus",
)


def expressions():
    """Every expression of the boards and rules."""
    boards = [json.loads(path.read_text()) for path in sorted(BOARDS.glob("*.json"))]
    panels = [panel for board in boards for panel in board["panels"] if panel["type"] != "row"]
    found = [target["expr"] for panel in panels for target in panel["targets"]]
    return found + [rule["expr"] for rule in rules()]


def rules():
    files = [yaml.safe_load((RULES / name).read_text()) for name in ("recording.yml", "alerts.yml")]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def test_boards_are_what_the_script_writes():
    """`scripts/grafana_boards.py` writes them."""
    assert {path.stem for path in BOARDS.glob("*.json")} == {board.name for board in grafana_boards.BOARDS}
    for board in grafana_boards.BOARDS:
        assert (BOARDS / f"{board.name}.json").read_text() == grafana_boards.as_json(board)


def test_every_metric_of_boards_and_rules_exists():
    """An expression with `or vector(0)` is never empty, so a misspelt name would not show there."""
    known = set(re.findall(r"`((?:cortex|process)_\w+)`", (TOP / "docs" / "metrics.md").read_text()))
    known |= set(re.findall(r"neuron_\w+", (TOP / "neuron" / "agent" / "api" / "metrics.py").read_text()))
    known |= {"neuron_engine_restarts_total", "neuron_device_memory_used_bytes", "neuron_device_memory_free_bytes"}
    known |= {rule["record"] for rule in rules() if "record" in rule}
    used = {name for expression in expressions() for name in METRIC.findall(expression)}
    assert len(used) > 40
    assert [name for name in used if re.sub(r"_(bucket|sum|count)$", "", name) not in known and name not in known] == []


def test_every_alert_has_a_runbook():
    """A section of docs/how-to/alerts.md."""
    sections = re.findall(r"^## (\w+)$", (TOP / "docs" / "how-to" / "alerts.md").read_text(), re.MULTILINE)
    alerts = [rule for rule in rules() if "alert" in rule]
    assert [alert["alert"] for alert in alerts] == sections
    for alert in alerts:
        assert alert["annotations"]["runbook_url"].endswith(f"/docs/how-to/alerts.md#{alert['alert'].lower()}")


@needs_prometheus
def test_promtool_accepts_and_tests_the_rules():
    subprocess.run(["promtool", "check", "rules", RULES / "recording.yml", RULES / "alerts.yml"], check=True)
    subprocess.run(["promtool", "test", "rules", RULES / "tests.yml"], check=True)
    tested = yaml.safe_load((RULES / "tests.yml").read_text())["tests"]
    names = {case["alertname"] for each in tested for case in each.get("alert_rule_test", ()) if case["exp_alerts"]}
    assert names == {rule["alert"] for rule in rules() if "alert" in rule}


@pytest.fixture
def fleet(tmp_path):
    """A demo with traffic, and a neuron with one loaded engine; the addresses that Prometheus scrapes."""
    host = tmp_path / "host"
    neuron = tmp_path / "neuron.toml"
    api = f'[api]\nlisten = "127.0.0.1:0"\n[state]\ndir = "{tmp_path / "state"}"\n'
    neuron.write_text(api + engine_table() + model("m", preload=True))
    with (
        running_cortex("demo", "--dir", host, "--port", 0, "--speed", 50) as demo,
        running_cortex("neuron", "serve", "-c", neuron) as agent,
    ):
        demo.read_until("Ctrl-C ends it")
        settings = Operator(host).settings
        line = agent.log_line("listening")
        address = re.search(r"127\.0\.0\.1:\d+", line)[0]
        ended = threading.Event()
        traffic = threading.Thread(target=send_requests, args=(f"http://{settings.gateway.listen}", ended))
        traffic.start()
        yield str(settings.gateway.metrics_listen), address
        ended.set()
        traffic.join()
        for process in (demo, agent):
            process.interrupt()
            process.end()


def send_requests(url, ended):
    """Streams and plain chats by two aliases until the test ends, and one that fails."""
    with httpx.Client(base_url=url, timeout=SAFETY_NET_S) as client:
        while not ended.wait(0.05):
            for name, stream in (("helexa/small", True), ("helexa/large", False), ("no/such-model", True)):
                body = {"model": name, "stream": stream, "messages": [{"role": "user", "content": "Say something."}]}
                client.post("/v1/chat/completions", json=body)


@needs_prometheus
@pytest.mark.slow
def test_every_expression_has_data(fleet, tmp_path):
    """Against a running demo; those of alerts are evaluated without their comparison."""
    admin, neuron = fleet
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES / "recording.yml"), str(RULES / "alerts.yml")],
        "scrape_configs": [
            {"job_name": "cortex", "static_configs": [{"targets": [admin]}]},
            {"job_name": "neurons", "static_configs": [{"targets": [neuron]}]},
        ],
    }
    path = tmp_path / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    with running_prometheus(path, tmp_path) as client:
        give_up_at = time.monotonic() + SAFETY_NET_S
        while missing := [each for each in expressions() if not has_data(client, each)]:
            assert time.monotonic() < give_up_at, "\n".join(missing)
            time.sleep(1)
        alerts = client.get("/api/v1/rules").json()["data"]["groups"]
        assert [rule["name"] for group in alerts for rule in group["rules"] if rule["health"] == "err"] == []


def has_data(client, expression):
    """Whether the query has a sample. Grafana's interval is 10 s here; a metric of rare events may have none yet."""
    query = expression.replace("$__rate_interval", "10s").strip()
    query = re.sub(r"\s*(==|<|>) [\d.]+$", "", query)  # of an alert
    answer = client.get("/api/v1/query", params={"query": query}).json()
    assert answer["status"] == "success", answer
    return bool(answer["data"]["result"]) or any(name in query for name in RARE)


# None of these happens in the demo by itself.
RARE = ("cortex_alias_swap_failed", "cortex_rollout_guard_distance", "cortex_queued_requests")


@contextmanager
def running_prometheus(path, folder):
    """Debian's Prometheus; its API's client."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'tsdb'}",
        f"--web.listen-address={address}",
    ]
    with (
        (folder / "prometheus.log").open("w") as log,
        subprocess.Popen(command, stderr=log) as process,
        httpx.Client(base_url=f"http://{address}", timeout=SAFETY_NET_S) as client,
    ):
        try:
            wait_until(lambda: process.poll() is not None or is_ready(client))
            yield client
        finally:
            process.terminate()


def is_ready(client):
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
