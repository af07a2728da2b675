"""Whole gateways whose own ports have TLS: streams, the admin port, Hypercorn, `check`, and the command line."""

import json
import ssl

import httpx
import pytest
import trio
from fakes.certificates import Authority
from fakes.patience import SAFETY_NET_S, until
from fakes.process import cortex
from fakes.running import PROBE, running_gateway

from gateway.config.settings import GatewaySettings, Listen, TlsSettings
from gateway.http.server_tls import certificate_store

CHAT = "/v1/chat/completions"
QUESTION = {"model": "helexa/small", "messages": PROBE}
ANY_PORT = Listen("127.0.0.1", 0)


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def issued(ca):
    return ca.issue("server")


def client_of(url, ca, own=None, **options):
    context = ssl.create_default_context(cafile=ca.cert)
    if own is not None:
        context.load_cert_chain(own.cert, own.key)
    return httpx.AsyncClient(base_url=url, verify=context, trust_env=False, timeout=SAFETY_NET_S, **options)


async def test_streams_and_a_client_that_leaves(tmp_path, ca, issued):
    """As without TLS: the neuron sees the client leave, and nothing is left of its request."""
    async with running_gateway(tmp_path, tls=TlsSettings(issued.cert, issued.key)) as running:
        assert running.url.startswith("https://")
        async with client_of(running.url, ca) as client:
            for stream in (False, True):
                answer = await client.post(CHAT, json={**QUESTION, "stream": stream})
                assert answer.status_code == 200
            assert answer.text.rstrip().endswith("data: [DONE]")
            assert running.gateway.upstream.in_use == 0
            running.neurons[0].speed = 1e-9
            async with trio.open_nursery() as leaving:
                leaving.start_soon(lambda: client.post(CHAT, json={**QUESTION, "stream": True}))
                await until(lambda: running.gateway.upstream.in_use)
                leaving.cancel_scope.cancel()
            await until(lambda: not running.gateway.request_log.live and not running.gateway.upstream.in_use)
        async with httpx.AsyncClient(trust_env=False, timeout=SAFETY_NET_S) as client:
            assert (await client.get(running.metrics_url)).status_code == 200  # [tls] admin is false


async def test_hypercorn_speaks_http_2_with_the_same_files(tmp_path, ca, issued):
    settings = GatewaySettings(listen=ANY_PORT, metrics_listen=ANY_PORT, http_server="hypercorn")
    tls = TlsSettings(issued.cert, issued.key, ca.cert)
    async with running_gateway(tmp_path, tls=tls, gateway=settings) as running:
        context = ssl.create_default_context(cafile=ca.cert)
        context.set_alpn_protocols(["h2"])
        own = ca.issue("client")
        context.load_cert_chain(own.cert, own.key)
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", running.port, ssl_context=context, https_compatible=True
        )
        with trio.fail_after(SAFETY_NET_S):
            await stream.do_handshake()
        assert stream.selected_alpn_protocol() == "h2"
        await trio.aclose_forcefully(stream)
        async with client_of(running.url, ca, own) as client:
            assert (await client.post(CHAT, json=QUESTION)).status_code == 200
        with pytest.raises(httpx.TransportError):
            async with client_of(running.url, ca) as client:
                await client.get("/health")


async def test_bad_new_pair_is_a_problem_until_it_is_mended(tmp_path, ca, monkeypatch):
    monkeypatch.setattr(certificate_store, "LOOK_INTERVAL_S", 0.02)
    issued, other = ca.issue("changing"), ca.issue("other")
    good = issued.key.read_bytes()
    async with (
        running_gateway(tmp_path, tls=TlsSettings(issued.cert, issued.key)) as running,
        client_of(running.url, ca) as client,
    ):
        issued.key.write_bytes(other.key.read_bytes())
        await until(lambda: running.gateway.certificates.error)
        problems = (await client.get("/health")).json()["problems"]
        [problem] = [problem for problem in problems if problem["code"] == "certificate_not_in_force"]
        assert problem["subject"] == str(issued.cert)
        assert "does not belong to the certificate" in problem["text"]
        issued.key.write_bytes(good)
        await until(lambda: running.gateway.certificates.error is None)


# The command line .....................................................................................................


def write_config(folder, *lines, api="127.0.0.1:0", metrics="127.0.0.1:0"):
    (folder / "models.toml").write_text("models = []\n")
    config = folder / "cortex.toml"
    config.write_text(
        f'models_config = "models.toml"\n[gateway]\nlisten = "{api}"\nmetrics_listen = "{metrics}"\n'
        '[[neurons]]\nname = "a"\nendpoint = "http://127.0.0.1:9"\n[tls]\n' + "\n".join(lines)
    )
    return config


def test_check_names_every_fault_of_the_certificate(tmp_path, ca):
    for name, days in (("good", 365), ("soon", 7), ("expired", -1)):
        issued = ca.issue(name, days=days)
        issued.cert.rename(tmp_path / f"{name}.pem")
        issued.key.rename(tmp_path / f"{name}.key")
    for lines, code, text in (
        (('cert = "good.pem"', 'key = "good.key"'), 0, ""),
        (('cert = "good.pem"',), 1, "cortex.toml:9: tls.cert: needs key; give both, or remove both"),
        (('key = "good.key"',), 1, "tls.key: needs cert"),
        (("admin = true",), 1, "tls.admin: has no effect without cert and key"),
        (('cert = "good.pem"', 'key = "soon.key"'), 1, "soon.key: tls.key: does not belong to the certificate in"),
        (('cert = "no.pem"', 'key = "good.key"'), 1, "no.pem: tls.cert: cannot be read: No such file or directory"),
        (('cert = "soon.pem"', 'key = "soon.key"'), 0, "warning: "),
        (('cert = "expired.pem"', 'key = "expired.key"'), 0, "clients refuse it; renew it"),
    ):
        done = cortex("check", "-c", write_config(tmp_path, *lines))
        assert (done.returncode, text in done.stderr) == (code, True), (lines, done.stderr)
        assert code or ("tls.cert" in done.stderr) == bool(text)


async def test_commands_trust_the_gateway_of_their_host_and_the_ca_that_they_are_given(tmp_path, ca, issued):
    """`[tls] admin`: the admin port demands a client certificate as well."""
    own = ca.issue("operator")
    tls = TlsSettings(issued.cert, issued.key, ca.cert, admin=True)
    profiles = tmp_path / "cortex" / "config.toml"
    async with running_gateway(tmp_path, tls=tls) as running:
        admin = f"https://localhost:{running.addresses.metrics.port}"
        profiles.parent.mkdir()
        profiles.write_text(
            f'[gateways.here]\nurl = "{admin}"\nkey = "secret"\nca = "{ca.cert}"\ncert = "{own.cert}"\n'
            f'cert_key = "{own.key}"\n'
        )
        certificate = {"CORTEX_CLIENT_CERT": str(own.cert), "CORTEX_CLIENT_KEY": str(own.key)}
        config = write_config(
            tmp_path,
            f'cert = "{issued.cert}"\nkey = "{issued.key}"\nadmin = true\n[admin]\ntoken = "secret"',
            api=running.addresses.api,
            metrics=running.addresses.metrics,
        )

        async def status(*arguments, **env):
            return await trio.to_thread.run_sync(lambda: cortex("status", "--json", *arguments, **env))

        for arguments, env in (
            (("-c", config), certificate),
            (("--url", admin, "--ca", ca.cert, "--key", "secret"), certificate),
            (("--url", admin, "--key", "secret"), certificate | {"CORTEX_CA": str(ca.cert)}),
            (("--url", "here"), {"XDG_CONFIG_HOME": str(tmp_path)}),
        ):
            done = await status(*arguments, **env)
            assert done.returncode == 0, (arguments, done.stderr)
            assert [node["name"] for node in json.loads(done.stdout)["fleet"]["nodes"]] == ["beast"]

        for arguments, env, reason in (
            (("--url", admin, "--key", "secret"), certificate, "certificate verify failed"),
            (("--url", admin, "--ca", ca.cert, "--key", "secret"), {}, "TLS failed: "),
            (("--url", admin, "--ca", profiles), {}, "has no certificate in PEM form"),
        ):
            done = await status(*arguments, **env)
            assert done.returncode != 0
            assert reason in done.stderr, done.stderr
            assert "Traceback" not in done.stderr


async def test_commands_trust_the_certificates_of_the_system(tmp_path, ca, issued):
    """Without `--ca`. OpenSSL reads `SSL_CERT_FILE` in place of the system's file."""
    async with running_gateway(tmp_path, tls=TlsSettings(issued.cert, issued.key, admin=True)) as running:
        arguments = ("status", "--url", f"https://localhost:{running.addresses.metrics.port}", "--key", "secret")
        for file, code, text in ((ca.cert, 0, ""), (tmp_path / "none", 2, "certificate verify failed")):
            done = await trio.to_thread.run_sync(lambda env={"SSL_CERT_FILE": str(file)}: cortex(*arguments, **env))
            assert (done.returncode, text in done.stderr) == (code, True), done.stderr


def test_serve_refuses_a_certificate_that_cannot_be_used(tmp_path):
    done = cortex("serve", "-c", write_config(tmp_path, 'cert = "no.pem"', 'key = "no.key"'))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "no.pem: tls.cert: cannot be read" in done.stderr
