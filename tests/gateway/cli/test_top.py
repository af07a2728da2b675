"""`cortex top`: one frame in a pipe, frames on a terminal until q; what a frame shows of a state."""

import os
import re

import pytest
from fakes.operator import Operator, key_in
from fakes.patience import SAFETY_NET_S
from fakes.process import cortex, on_a_terminal, running_cortex
from rich.console import Console

from gateway.cli.live_figures import LiveFigures, parse_scrape
from gateway.cli.views.top_view import Trend, render_top

DEVICE = {"index": 0, "vram_total_mb": 10240, "vram_used_mb": 6144, "utilization_pct": 50, "power_w": 200, "temp_c": 60}


def model(name, mb, status="loaded", **more):
    return {"id": f"Qwen/{name}", "status": status, "devices": [0], "vram_used_mb": mb, "leases": 0} | more


def node(*models, **more):
    return {"name": "beast", "healthy": True, "draining": False, "devices": [DEVICE], "models": list(models)} | more


def shown(*nodes, requests=(), problems=(), figures=None, width=180):
    health = {"status": "impaired" if problems else "ok", "problems": problems, "nodes": {"healthy": 1, "total": 1}}
    state = {"health": health, "fleet": {"nodes": nodes}, "requests": requests}
    out = Console(width=width, color_system=None, markup=False, emoji=False)
    with out.capture() as captured:
        out.print(render_top(state, figures or LiveFigures(), {"requests/s": Trend()}))
    return captured.get()


def test_bar_has_a_block_per_model_and_dots_for_what_is_free():
    text = shown(node(model("A", 2560, leases=3), model("B", 2560, "loading"), model("C", 512, "asleep")))
    bar = re.search(r"beast\s+(\S+)", text)[1]
    assert bar == "█" * 10 + "▏" + "▒" * 10 + "▏" + "░▏" + "▓▓" + "·" * 18  # 11, 11 and 2 cells; 2 of others
    assert "█ A 3, ▒ B (loading), ░ C (asleep)" in text
    assert "6.0 / 10" in text
    assert "50 %" in text


def test_hosts_that_are_down_or_drained_say_so():
    text = shown(node(healthy=False), node(name="mule", draining=True, devices=None))
    assert "beast (down)" in text
    assert "mule (drained)" in text
    assert "not reported" in text


def request(number, state="running", **more):
    return {
        "request_id": f"r{number}",
        "state": state,
        "node": "beast",
        "elapsed_s": number,
        "tokens": 7,
        "alias": "helexa/small",
        "model": "Qwen/A",
        "key": None,
    } | more


def test_requests_are_sorted_by_their_age():
    text = shown(node(), requests=[request(1), request(40, "queued"), request(2)])
    assert re.findall(r"\br\d+\b", text) == ["r40", "r2", "r1"]
    assert "2 running, 1 waiting" in text
    assert "queued" in text


def test_request_names_its_key():
    text = shown(node(), requests=[request(1, key={"id": "k1", "name": "olga"}), request(2)])
    assert re.search(r"beast +olga +r1", text)
    assert re.search(r"beast +- +r2", text)


def test_narrow_terminal_cuts_ids_and_scales_bars():
    """A bar that was cut off would show a full device."""
    long = request(1, request_id="f" * 32, key={"id": "k1", "name": "olga"})
    lines = shown(node(model("A", 5120)), requests=[long], width=80).splitlines()
    assert max(map(len, lines)) <= 80
    bar = next(re.search(r"beast +(\S+)", line)[1] for line in lines if "beast" in line)
    assert 12 <= len(bar) < 44
    assert bar.count("·") == pytest.approx(len(bar) * 0.4, abs=1)
    assert re.search(r"1.0 s +7 +helexa/small +A +beast +olga +f+…", lines[-1])


def test_names_from_outside_are_no_markup():
    assert "[bold]" in shown(node(model("[bold]", 100)))
    assert "[/x]" in shown(node(), requests=[request(1, request_id="[/x]")])


def test_problems_come_first():
    text = shown(node(), problems=[{"code": "node_down", "subject": "mule", "text": "refused", "since": 0}])
    assert text.index("node_down") < text.index("host")


def test_rates_of_the_last_seconds():
    figures = LiveFigures()
    for at, requests in ((0.0, 0), (10.0, 50)):
        figures.add(
            parse_scrape(
                f'# TYPE cortex_requests counter\ncortex_requests_total{{node="beast",model="m"}} {requests}\n', at
            )
        )
    assert "5.0 requests/s" in shown(node(), figures=figures)


@pytest.mark.parametrize(("values", "line"), [([], ""), ([0, 0], "  "), ([0, 4, 8], " ▄█")])
def test_trend_is_relative_to_its_maximum(values, line):
    trend = Trend(3)
    for value in values:
        trend.add(value)
    assert str(trend) == line


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    """The admin address of a demo, and a key."""
    folder = tmp_path_factory.mktemp("demo")
    with running_cortex("demo", "--dir", folder, "--port", 0, "--speed", 50) as process:
        key = key_in(process.read_until("Ctrl-C ends it"))
        yield {"CORTEX_URL": f"http://{Operator(folder).settings.gateway.metrics_listen}", "CORTEX_KEY": key}
        process.interrupt()
        process.end()


def test_pipe_gets_one_frame(gateway):
    result = cortex("top", **gateway)
    assert (result.returncode, result.stderr) == (0, "")
    assert "3 of 3 neurons" in result.stdout
    assert "Qwen3.6-27B" in result.stdout


def test_q_ends_it_on_a_terminal(gateway):
    with on_a_terminal("top", "--interval", "0.2", **gateway) as top:
        top.read_until("quadbrat", times=1)
        os.write(top.terminal, b"q")
        assert top.popen.wait(timeout=SAFETY_NET_S) == 0


def test_no_gateway_is_one_line_and_code_2():
    result = cortex("top", CORTEX_URL="http://127.0.0.1:1", CORTEX_KEY="x")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
