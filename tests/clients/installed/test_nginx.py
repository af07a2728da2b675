"""A real nginx in front, as Debian ships it: its own nginx.conf, and a site of one line, `proxy_pass`.

So it speaks HTTP/1.0 to the gateway, buffers by default, and compresses what it may.
"""

import os
import re
from contextlib import asynccontextmanager

import httpx
import pytest
import trio
from fakes.fleets import assert_idle
from fakes.patience import SAFETY_NET_S, best_of, measured, until
from fakes.process import a_port_of_our_own
from fakes.running import PROBE, SMALL, running_gateway
from fakes.scene import TOP
from fakes.stepwise import CHAT, disconnect_after_a_word, read_word_by_word, stepwise

from gateway.config.settings import NeuronSettings
from neuron.simulated import faults
from neuron.simulated.fleet import neuron

DEBIAN = TOP / ".clients" / "nginx"
SITE = "server {{ listen 127.0.0.1:{ours}; location / {{ proxy_pass http://127.0.0.1:{theirs}; }} }}\n"


def configured(folder, port):
    """Debian's nginx.conf with its paths in `folder`, and the port on which nginx then listens."""
    ours = a_port_of_our_own()
    (folder / "sites").mkdir()
    (folder / "sites" / "cortex").write_text(SITE.format(ours=ours, theirs=port))
    conf = (DEBIAN / "etc/nginx/nginx.conf").read_text()
    conf = conf.replace("/etc/nginx/sites-enabled", f"{folder}/sites").replace("/etc/nginx", f"{DEBIAN}/etc/nginx")
    conf = conf.replace("/run/nginx.pid", f"{folder}/pid").replace("/var/log/nginx", str(folder))
    # pytest's folders are for one user only, and uploads pass through one of them.
    conf = conf.replace("user www-data;", "user root;" if os.geteuid() == 0 else "")
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};\n" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(re.sub(r"\nhttp \{\n", f"\nhttp {{\n{temporary}", conf))
    return ours


@asynccontextmanager
async def nginx(folder, port):
    """Its port, once it answers, until the end of the block."""
    folder.mkdir()
    ours = configured(folder, port)
    files = ["-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    process = await trio.lowlevel.open_process([str(DEBIAN / "usr/sbin/nginx"), *files, "-g", "daemon off;"])
    try:
        with trio.fail_after(SAFETY_NET_S):
            while not await answers(ours):
                assert process.poll() is None, (folder / "error.log").read_text()
                await trio.sleep(0.02)
        yield ours
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):  # its workers end with it at once
            await process.wait()


async def answers(port):
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError:
        return False
    await stream.aclose()
    return True


@asynccontextmanager
async def nginx_before_an_engine(tmp_path):
    """nginx, a gateway, and an engine that sends one word at a time."""
    async with stepwise() as (engine, url):
        backend = NeuronSettings("engine", url, kind="openai")
        async with (
            running_gateway(tmp_path, [], models_toml="", backends=(backend,)) as cortex,
            nginx(tmp_path / "nginx", cortex.port) as port,
        ):
            yield engine, port, cortex


@pytest.fixture
def beast():
    return neuron("beast", [24576, 24576], [SMALL], speed=100)


@pytest.fixture
async def far(tmp_path, beast):
    async with (
        running_gateway(tmp_path, [beast]) as cortex,
        nginx(tmp_path / "nginx", cortex.port) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60) as client,
    ):
        yield client


async def test_stream_arrives_word_by_word(tmp_path):
    """Although nginx buffers by default: the response switches that off."""
    async with nginx_before_an_engine(tmp_path) as (engine, port, _):
        assert await read_word_by_word(engine, port, SMALL) == b"".join(engine.words)


async def test_engine_sees_the_client_disconnect(tmp_path):
    """When nginx closes its connection, the gateway closes its own to the engine."""
    async with nginx_before_an_engine(tmp_path) as (engine, port, cortex):
        await disconnect_after_a_word(engine, port, SMALL)
        await until(lambda: not cortex.gateway.request_log.live)
        assert_idle(cortex.gateway.fleet)


@measured
async def test_engine_sees_the_client_disconnect_within_200_ms(tmp_path):
    """The best of several attempts, because the machine may be busy."""
    async with nginx_before_an_engine(tmp_path) as (engine, port, _):
        await best_of(lambda: disconnect_after_a_word(engine, port, SMALL), 0.2)


async def test_other_answers_pass_as_well(far):
    """Whole answers, slashes as %2F, errors with their Retry-After, and a body that nginx first writes to its disk."""
    answer = await far.post(CHAT, json={"model": "helexa/small", "messages": PROBE, "padding": "x" * 200_000})
    model = await far.get("/v1/models/helexa%2Fsmall")

    assert "Tbilisi" in answer.json()["choices"][0]["message"]["content"]
    assert answer.headers["x-cortex-model"] == SMALL
    assert model.json()["id"] == "helexa/small"


async def test_error_keeps_its_retry_after(far, beast):
    """And its body is the gateway's, not nginx's."""
    beast.faults.add(faults.HttpError(status=503, text="full", retry_after_s=7))
    answer = await far.post(CHAT, json={"model": SMALL, "messages": PROBE})

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "7")
    assert answer.json()["error"]["message"] == "full"


async def test_broken_stream_looks_broken(far, beast):
    """One error event, and no `[DONE]`: HTTP/1.0 has no other way to show it."""
    beast.faults.add(faults.Drop(after=3))
    answer = await far.post(CHAT, json={"model": SMALL, "messages": PROBE, "stream": True})

    assert answer.text.count('"error"') == 1
    assert "[DONE]" not in answer.text
