"""One gateway takes over from another, both in this process: sockets, state, and what happens if either fails."""

import dataclasses
import json
import stat
from contextlib import asynccontextmanager
from functools import partial

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway
from structlog.testing import capture_logs

from gateway.config.settings import Listen
from gateway.server.gateway import Gateway
from gateway.server.restart import takeover_messages
from gateway.server.restart.takeover import connect_to_predecessor
from gateway.server.restart.takeover_messages import Handed, Serving, TakeoverFailed
from gateway.server.serve import Start, serve

CHAT = "/v1/chat/completions"
HOT = {"model": "helexa/small", "messages": PROBE}


@pytest.fixture
async def old(tmp_path):
    async with running_gateway(tmp_path, start=Start(replaceable=True)) as running:
        yield running


@asynccontextmanager
async def client_of(url):
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=SAFETY_NET_S) as client:
        yield client


def state_dir(running):
    return running.gateway.catalogue_files.state_dir


async def start_successor(nursery, old, **changed):
    """A gateway with the same settings that has taken over; returns it, and the event that stops it."""
    predecessor = connect_to_predecessor(state_dir(old))
    gateway = Gateway(dataclasses.replace(old.gateway.settings, **changed))
    stop = trio.Event()
    start = Start(predecessor=predecessor, replaceable=True)
    try:
        addresses = await nursery.start(partial(serve, gateway, stop=stop.wait, start=start))
    finally:
        predecessor.close()
    return gateway, addresses, stop


async def test_successor_has_the_same_sockets_and_the_old_one_ends(old, nursery):
    """A request that runs in the old one meanwhile runs to its end there."""
    finished = []

    async def stream():
        async with client_of(old.url) as client:
            body = {**HOT, "stream": True, "messages": [{"role": "user", "content": "Write 30 words"}]}
            finished.append((await client.post(CHAT, json=body)).text.rstrip().endswith("data: [DONE]"))

    old.neurons[0].speed = 1e-3
    async with trio.open_nursery() as streams:
        streams.start_soon(stream)
        await until(lambda: old.gateway.request_log.live)
        gateway, addresses, stop = await start_successor(nursery, old)
        assert addresses == old.addresses
        async with client_of(addresses.url) as client:
            assert (await client.get("/health")).status_code == 200
        assert not finished
        assert len(old.gateway.request_log.live) == 1
        old.neurons[0].speed = 1e3
    assert finished == [True]
    async with client_of(addresses.url) as client:
        assert (await client.post(CHAT, json=HOT)).status_code == 200
    assert len(gateway.request_log.live) == 0
    stop.set()


async def test_socket_is_for_this_user_only(old):
    mode = stat.S_IMODE((state_dir(old) / "takeover.sock").stat().st_mode)
    assert mode == 0o600


async def test_process_of_another_user_gets_nothing(old, nursery, monkeypatch):
    """Either side refuses the other."""
    monkeypatch.setattr(takeover_messages.os, "geteuid", lambda: 4711)
    monkeypatch.setattr(takeover_messages, "ROOT", 4712)
    with capture_logs() as logs:
        with pytest.RaisesGroup(TakeoverFailed, flatten_subgroups=True):
            await start_successor(nursery, old)
        await until(lambda: [entry for entry in logs if entry["event"] == "takeover_failed"])
    async with client_of(old.url) as client:
        assert (await client.post(CHAT, json=HOT)).status_code == 200


async def test_without_a_running_gateway_there_is_nothing_to_take(tmp_path):
    assert connect_to_predecessor(tmp_path) is None
    (tmp_path / "takeover.sock").touch()
    assert connect_to_predecessor(tmp_path) is None


async def test_gateway_with_another_address_is_not_replaced(old, nursery):
    """Copies of a gateway may share a state directory; a new one must not end the wrong one."""
    other = dataclasses.replace(old.gateway.settings.gateway, listen=Listen("127.0.0.1", 1))
    with pytest.RaisesGroup(pytest.RaisesExc(TakeoverFailed, match="listens on"), flatten_subgroups=True):
        await start_successor(nursery, old, gateway=other)
    async with client_of(old.url) as client:
        assert (await client.post(CHAT, json=HOT)).status_code == 200


async def test_successor_that_fails_after_the_sockets_were_handed_over(old):
    """The old one starts its writers again, and goes on: an edit of models.toml is noticed and audited."""
    predecessor = connect_to_predecessor(state_dir(old))
    sockets, handed = await predecessor.take(await predecessor.find_wanted(old.gateway.settings.gateway))
    assert isinstance(handed, Handed)
    sockets.close()
    with capture_logs() as logs:
        predecessor.close()
        await until(lambda: [entry for entry in logs if entry["event"] == "takeover_failed"])
    async with client_of(old.url) as client:
        assert (await client.post(CHAT, json=HOT)).status_code == 200
    old.swap("helexa/small", LARGE)
    await old.pointing_at("helexa/small", LARGE)
    await until(lambda: LARGE in last_audit_line(old).get("summary", ""))
    events = [json.loads(line)["event"] for line in audit_lines(old)]
    assert events.count("started") == 1


def audit_lines(running):
    return running.gateway.catalogue_files.audit_log.path.read_text().splitlines()


def last_audit_line(running):
    return json.loads(audit_lines(running)[-1])


async def test_writers_of_the_old_one_have_ended_before_the_new_one_gets_the_sockets(old, nursery):
    """So that no state file has two writers."""
    predecessor = connect_to_predecessor(state_dir(old))
    sockets, _ = await predecessor.take(await predecessor.find_wanted(old.gateway.settings.gateway))
    lines = old.gateway.catalogue_files.audit_log.path.read_text()
    old.swap("helexa/small", LARGE)
    await trio.sleep(0.5)  # a running watch notices an edit within 0.1 s
    assert old.gateway.catalogue_store.current.aliases["helexa/small"].target == SMALL
    assert old.gateway.catalogue_files.audit_log.path.read_text() == lines
    sockets.close()
    predecessor.close()


async def test_state_is_handed_on(old, nursery):
    """Drains of a neuron, the generation, and what only use has taught: which model has answered, and when."""
    old.swap("helexa/large", SMALL)
    await old.pointing_at("helexa/large", SMALL)
    generation = old.gateway.catalogue_store.current.generation
    async with client_of(old.url) as client:
        assert (await client.post(CHAT, json=HOT)).status_code == 200
    before = old.gateway.fleet.nodes["beast"].models[SMALL]
    assert before.proven
    old.gateway.drains.drain("beast")
    await old.gateway.drain_store.save()
    gateway, _, stop = await start_successor(nursery, old)
    after = gateway.fleet.nodes["beast"].models[SMALL]
    assert gateway.catalogue_store.current.generation == generation
    assert after.proven
    assert abs(after.last_used - before.last_used) < SAFETY_NET_S / 2
    assert gateway.fleet.nodes["beast"].draining
    stop.set()


async def test_alias_that_is_warming_stays_on_its_old_target(old, nursery):
    """Its requests must not wait for a load because the gateway restarts."""
    old.neurons[0].speed = 1e-9  # a load or a probe takes for ever
    old.swap("helexa/small", "Qwen/Qwen3-8B")
    await until(lambda: "helexa/small" in old.gateway.catalogue_store.current.warming)
    gateway, _, stop = await start_successor(nursery, old)
    catalogue = gateway.catalogue_store.current
    assert catalogue.aliases["helexa/small"].target == SMALL
    assert catalogue.warming["helexa/small"].wanted.target == "Qwen/Qwen3-8B"
    old.neurons[0].speed = 1e6
    stop.set()


async def test_takeover_can_be_repeated(old, nursery):
    """Each successor listens for the next one."""
    gateway, addresses, _ = await start_successor(nursery, old)
    again = dataclasses.replace(old, gateway=gateway)
    _, same, stop = await start_successor(nursery, again)
    assert same == addresses
    stop.set()
    await until(lambda: not (state_dir(old) / "takeover.sock").exists())


async def test_state_directory_with_a_long_name(tmp_path, nursery):
    """The address of a Unix socket has at most 107 bytes."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    async with running_gateway(folder, start=Start(replaceable=True)) as old:
        _, addresses, stop = await start_successor(nursery, old)
        assert addresses == old.addresses
        stop.set()


async def test_other_protocol_is_refused(old):
    """A later version may speak another one."""
    predecessor = connect_to_predecessor(state_dir(old))
    await predecessor.find_wanted(old.gateway.settings.gateway)
    with capture_logs() as logs:
        await predecessor._open_channel().send(Serving())
        await until(lambda: [entry for entry in logs if entry["event"] == "takeover_failed"])
    predecessor.close()
    assert old.gateway.catalogue_files.state_dir.joinpath("takeover.sock").exists()
