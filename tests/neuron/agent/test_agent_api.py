"""The daemon's API beyond what gateways rely on: codes, token, logs, metrics, reload, TLS. On real processes."""

from __future__ import annotations

import json
import os
import ssl
from contextlib import suppress
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import trio
from fakes.agents_host import engine_table, model, running_agent
from fakes.patience import SAFETY_NET_S, until

from neuron.agent.process.launcher import descendants
from neuron.agent.supervision.state_file import StateDirectoryInUse

CHAT = "/v1/chat/completions"
SLOW = ("--token-seconds", "0.05")


def alive(pids) -> list[int]:
    return [pid for pid in pids if os.path.exists(f"/proc/{pid}")]  # noqa: PTH110 - no file


def chat(model_id: str, max_tokens: int = 3, **keys: object) -> dict[str, object]:
    return {"model": model_id, "messages": [], "max_tokens": max_tokens, **keys}


# Errors ...............................................................................................................


async def test_failed_start_has_a_code_a_reason_and_the_last_lines(tmp_path) -> None:
    text = engine_table() + model("m", "--fails", "torch.OutOfMemoryError: CUDA out of memory")
    async with running_agent(tmp_path, text) as agent:
        answer = await agent.load("m")

        assert answer.status_code == 400
        assert answer.json()["code"] == "start_failed"
        assert "not enough free device memory" in answer.json()["error"]
        assert "torch.OutOfMemoryError: CUDA out of memory" in answer.json()["error"]
        assert (await agent.entry("m"))["status"] == "unloaded"


async def test_program_that_is_missing_is_named(tmp_path) -> None:
    text = '[engines.fake]\ncommand = ["no-such-program", "{port}"]\n' + model("m")
    async with running_agent(tmp_path, text) as agent:
        assert "cannot start no-such-program: No such file or directory" in (await agent.load("m")).json()["error"]


async def test_load_that_does_not_fit_names_the_holder(tmp_path) -> None:
    total_mb = 10**7  # of no machine
    async with running_agent(tmp_path, engine_table() + model("m", vram_mb=total_mb)) as agent:
        answer = await agent.load("m")

        assert (answer.status_code, answer.json()["code"]) == (400, "does_not_fit")
        assert "device 0 has" in answer.json()["error"]


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("/models/load", {"model_id": "x"}, 400, "not_found"),
        ("/models/load", {"model_id": 1}, 400, "invalid"),
        ("/models/load", [], 400, "invalid"),
        ("/models/unload", {"model_id": "m"}, 404, "not_found"),
        ("/models/sleep", {"model_id": "m"}, 404, "not_found"),
        ("/models/sleep", {"model_id": "m", "level": 7}, 400, "invalid"),
        ("/models/wake", {"model_id": "m"}, 404, "not_found"),
        ("/nowhere", {}, 404, "not_found"),
        ("/health", {}, 405, "invalid"),
        (CHAT, {"messages": []}, 400, "invalid"),
        (CHAT, {"model": "m"}, 404, "not_found"),
        ("/engines/m/v1/chat/completions", {}, 404, "not_found"),
        ("/engines/m/sleep", {}, 404, "not_found"),
    ],
)
async def test_errors_are_flat_and_have_a_code(tmp_path, path: str, body: object, status: int, code: str) -> None:
    async with running_agent(tmp_path, engine_table() + model("m")) as agent:
        answer = await agent.client.post(path, json=body)

        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json().keys() == {"error", "code"}


async def test_unload_with_requests_in_flight_is_409_unless_forced(tmp_path) -> None:
    async with running_agent(tmp_path, engine_table() + model("m", *SLOW)) as agent:
        await agent.load("m")
        url = await agent.endpoint("m")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_ignore_break, agent.client, f"{url}{CHAT}", chat("m", 10_000, stream=True))
            with trio.fail_after(SAFETY_NET_S):
                while not (await agent.client.get(f"{url}/slots")).json()[0]["is_processing"]:
                    await trio.sleep(0.01)
            refused = await agent.unload("m")
            assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
            assert (await agent.entry("m"))["status"] == "loaded"
            assert (await agent.client.get("/health")).json()["models"][0]["in_flight"] == 1
            assert (await agent.unload("m", force=True)).json() == {"status": "unloaded"}


async def _ignore_break(client: httpx.AsyncClient, url: str, body: object) -> None:
    with suppress(httpx.HTTPError):
        await client.post(url, json=body)


# Token, TLS ...........................................................................................................


async def test_token_is_demanded_everywhere_but_on_health(tmp_path) -> None:
    text = '[api]\nlisten = "0.0.0.0:0"\ntoken = "secret"\n' + engine_table() + model("m")
    async with running_agent(tmp_path, text, token="secret") as agent:
        await agent.load("m")
        async with httpx.AsyncClient(base_url=agent.url, trust_env=False, timeout=SAFETY_NET_S) as anonymous:
            assert (await anonymous.get("/health")).status_code == 200
            for method, path in [
                ("GET", "/models"), ("GET", "/discovery"), ("GET", "/metrics"), ("GET", "/models/m/endpoint"),
                ("GET", "/engines/m/logs"), ("POST", "/reload"), ("POST", "/models/unload"), ("POST", CHAT),
                ("POST", f"/engines/m{CHAT}"), ("GET", "/v1/models"), ("GET", "/nowhere"),
            ]:  # fmt: skip
                for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
                    refused = await anonymous.request(method, path, headers=headers)
                    assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized"), path
                    assert refused.headers["www-authenticate"] == "Bearer"
        assert (await agent.entry("m"))["status"] == "loaded"


async def test_web_pages_cannot_use_a_neuron_without_a_token(tmp_path) -> None:
    """A page can send requests to loopback, also without CORS, as long as it needs no answer."""
    async with running_agent(tmp_path, engine_table() + model("m")) as agent:
        await agent.load("m")
        headers = {"origin": "https://evil.example", "content-type": "text/plain"}
        for path in ("/models/unload", "/reload", CHAT):
            refused = await agent.client.post(path, content=b'{"model_id":"m","model":"m"}', headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        assert (await agent.entry("m"))["status"] == "loaded"


async def test_tls(tmp_path, tls_files) -> None:
    cert, key = tls_files
    text = f'[api]\nlisten = "127.0.0.1:0"\ncert = "{cert}"\nkey = "{key}"\n' + engine_table() + model("m")
    context = ssl.create_default_context(cafile=cert)
    context.check_hostname = False
    async with running_agent(tmp_path, text, verify=context) as agent:
        assert agent.url.startswith("https://")
        assert (await agent.load("m")).json() == {"status": "loaded"}
        assert (await agent.client.post(CHAT, json=chat("m", stream=True))).text.endswith("[DONE]\n\n")


# Entries, logs, metrics ...............................................................................................


async def test_entry_has_what_gateways_need_to_know_of_the_engine(tmp_path) -> None:
    async with running_agent(tmp_path, engine_table() + model("m", "--serves", "other")) as agent:
        before = await agent.entry("m")
        await agent.load("m")
        entry = await agent.entry("m")

        assert "serves" not in before
        assert (entry["engine"], entry["serves"]) == ("llamacpp", "other")
        assert entry["dialects"] == ["openai", "anthropic", "responses"]
        assert entry["limit"] == {"context": 4096, "output": 4096}
        answer = await agent.client.post(CHAT, json=chat("m"))  # the body's model becomes the engine's own name
        assert answer.status_code == 200


async def test_logs_and_following_them(tmp_path) -> None:
    async with running_agent(tmp_path, engine_table() + model("org/m", "--ready-after", "0.5")) as agent:
        assert (await agent.client.get("/engines/org%2Fm/logs")).text == ""
        seen = b""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.load, "org/m")
            async with agent.client.stream("GET", "/engines/org%2Fm/logs?follow=1&bytes=1000") as answer:
                assert answer.headers["content-type"] == "text/plain; charset=utf-8"
                with trio.CancelScope() as enough:
                    async for piece in answer.aiter_raw():
                        seen += piece
                        if b"serves org/m" in seen:
                            enough.cancel()
        assert b"fake_engine.py --host" in seen
        assert (await agent.client.get("/engines/org%2Fm/logs?bytes=11")).text == "rves org/m\n"
        assert (await agent.client.get("/engines/org%2Fm/logs?bytes=x")).status_code == 400
        assert (await agent.client.get("/engines/zzz/logs")).status_code == 404
        kept = (tmp_path / "neuron-state/logs/org%2Fm.log").read_text()
        assert "serves org/m" in kept


async def test_metrics(tmp_path) -> None:
    async with running_agent(tmp_path, engine_table() + model("m") + model("n")) as agent:
        await agent.load("m")
        text = (await agent.client.get("/metrics")).text

        assert 'neuron_engine_up{model="m"} 1.0' in text
        assert 'neuron_engine_up{model="n"} 0.0' in text
        assert 'neuron_engine_restarts_total{model="m"} 0.0' in text
        assert 'neuron_load_seconds_count{model="m"} 1.0' in text
        assert 'neuron_device_memory_free_bytes{device="0"}' in text
        assert "_created" not in text


# Reload ...............................................................................................................


async def test_reload_on_request_and_when_the_file_changes(tmp_path) -> None:
    text = '[api]\nlisten = "127.0.0.1:0"\n' + engine_table()
    async with running_agent(tmp_path, text + model("a")) as agent:
        await agent.load("a")
        agent.path.write_text(text + model("a", "--token-seconds", "0.001") + model("b"))
        answer = (await agent.client.post("/reload")).json()
        assert answer["status"] == "reloaded"
        # The watch may have been first.
        assert (answer["added"], answer["removed"], answer["at_next_load"]) in ((["b"], [], ["a"]), ([], [], []))
        assert "at the next load" in str((await agent.entry("a"))["notice"])

        agent.path.write_text(text + model("b"))
        with trio.fail_after(SAFETY_NET_S):
            while len((await agent.client.get("/models")).json()) != 1:
                await trio.sleep(0.05)
        assert (await agent.load("b")).status_code == 200


async def test_reload_of_a_faulty_file_lists_its_faults_and_changes_nothing(tmp_path) -> None:
    async with running_agent(tmp_path, engine_table() + model("a")) as agent:
        agent.path.write_text("[api]\nopen = 1\n[zzz]\n")
        answer = await agent.client.post("/reload")

        assert (answer.status_code, answer.json()["code"]) == (400, "invalid")
        assert [fault["line"] for fault in answer.json()["faults"]] == [2, 3]
        assert (await agent.load("a")).status_code == 200


# Ends .................................................................................................................


async def test_nothing_is_left_of_engines_after_the_end(tmp_path) -> None:
    """Also of one that ignores SIGTERM, and of a child that has left the process group."""
    text = engine_table() + model("a", "--escaped-child") + model("b", "--ignore-sigterm")
    async with running_agent(tmp_path, text) as agent:
        await agent.load("a")
        await agent.load("b")
        await until(lambda: len(agent.engine_pids()) == 2)
        launchers = agent.engine_pids()
        below = [pid for launcher in launchers for pid in descendants(launcher)]
        assert len(below) == 3
    assert alive(launchers + below) == []


async def test_second_neuron_with_the_same_state_is_refused(tmp_path) -> None:
    async with running_agent(tmp_path, engine_table() + model("a")):
        with pytest.RaisesGroup(StateDirectoryInUse, flatten_subgroups=True):
            async with running_agent(tmp_path, engine_table() + model("a")):
                pass


# Open .................................................................................................................

OPEN = '[api]\nlisten = "0.0.0.0:0"\nopen = true\n'


async def test_open_neuron_exposes_its_engines(tmp_path: Path) -> None:
    """They listen where the neuron does, gateways get their own URL, and the neuron counts by their own account."""
    async with running_agent(tmp_path, OPEN + engine_table() + model("org/m", *SLOW)) as agent:
        assert (await agent.load("org/m")).status_code == 200
        url = await agent.endpoint("org/m")
        port = urlsplit(url).port
        assert port is not None
        assert url == f"http://localhost:{port}"
        assert f":{port}" not in agent.url
        elsewhere = f"http://127.0.0.2:{port}"  # an engine on 127.0.0.1 does not answer there
        async with httpx.AsyncClient(trust_env=False, timeout=SAFETY_NET_S) as client, trio.open_nursery() as nursery:
            nursery.start_soon(partial(client.post, elsewhere + CHAT, json=chat("org/m", 1000)))
            with trio.fail_after(SAFETY_NET_S):
                while (await agent.client.get("/health")).json()["models"][0]["in_flight"] != 1:
                    await trio.sleep(0.02)
            assert (await agent.unload("org/m")).status_code == 409  # by the engine's own count
            assert (await agent.client.post(CHAT, json=chat("org/m"))).status_code == 200
            nursery.cancel_scope.cancel()


async def test_closed_neuron_has_its_engines_on_loopback(tmp_path: Path) -> None:
    """Beyond loopback with a token: its forwarder is the only way."""
    text = '[api]\nlisten = "0.0.0.0:0"\ntoken = "t"\n' + engine_table() + model("org/m")
    async with running_agent(tmp_path, text, token="t") as agent:
        assert (await agent.load("org/m")).status_code == 200
        assert "/engines/org%2Fm" in await agent.endpoint("org/m")
        state = json.loads((tmp_path / "neuron-state/state.json").read_bytes())
        (port,) = [process["port"] for process in state["processes"].values()]
        with pytest.raises(OSError, match=r"refused|unreachable|failed"):
            await trio.open_tcp_stream("127.0.0.2", port)
