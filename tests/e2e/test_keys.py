"""Keys on a whole gateway, on real sockets: who gets in, what each key sees, and the admin API of keys."""

from __future__ import annotations

import json

import anthropic
import httpx
import openai
import pytest
import trio
from fakes.keys import bearer, new_key
from fakes.patience import SAFETY_NET_S, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway
from structlog.testing import capture_logs

from gateway.access.keys import secret as secrets_of_keys
from gateway.access.keys.secret import new_secret
from gateway.config.settings import AccessSettings, AdminSettings, GatewaySettings, Listen, StoreSettings
from gateway.server.listen import CannotStart

ALL_VERBS = ["infer", "read", "operate", "keys"]
KEYS = AccessSettings(mode="keys")
CHAT = {"model": "helexa/small", "messages": PROBE}


@pytest.fixture
async def cortex(tmp_path, store_url):
    async with running_gateway(tmp_path, access=KEYS, admin=AdminSettings(), store=StoreSettings(store_url)) as running:
        yield running


def client_of(url, headers=None):
    return httpx.AsyncClient(base_url=url, headers=headers, trust_env=False, timeout=SAFETY_NET_S)


def admin_of(running, secret):
    return client_of(f"http://{running.addresses.metrics}", bearer(secret))


def code(answer):
    return answer.status_code, answer.json()["error"]["code"]


# Who gets in ..........................................................................................................


async def test_keys_mode_answers_health_to_everyone_and_the_rest_to_keys(cortex):
    """What load balancers, scrapers and browsers ask for needs no key; even a path that does not exist does."""
    metrics = f"http://{cortex.addresses.metrics}"
    async with client_of(cortex.url) as client:
        for path in ("/", "/health"):
            body = (await client.get(path)).json()
            assert body.keys() - {"name", "version"} == {"status", "nodes"}, path
        for url in ("/ready", "/openapi.json", f"{metrics}/metrics", f"{metrics}/openapi.json"):
            assert (await client.get(url)).status_code == 200, url
        assert (await client.get(f"{metrics}/health")).json().keys() == {"status", "nodes"}
        assert (await client.options("/v1/chat/completions")).status_code == 204
        origin = {"origin": "https://app.example", "access-control-request-method": "POST"}
        assert (await client.options("/v1/chat/completions", headers=origin)).status_code == 204
        for method, url in (
            ("POST", "/v1/chat/completions"),
            ("POST", "/v1/audio/transcriptions"),
            ("POST", "/tokenize"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/helexa/small"),
            ("GET", "/nothing"),
            ("GET", f"{metrics}/admin/fleet"),
            ("GET", f"{metrics}/admin/keys"),
        ):
            answer = await client.request(method, url)
            assert code(answer) == (401, "invalid_api_key"), url
            assert answer.headers["www-authenticate"] == "Bearer"

    secret = await new_key(cortex.gateway, "alice")
    reader = await new_key(cortex.gateway, "reader", verbs=["read"])
    for headers in (bearer(secret), {"x-api-key": secret}, {"api-key": secret}):
        async with client_of(cortex.url, headers) as client:
            assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
            assert (await client.get("/health")).json().keys() == {"status", "nodes"}
    async with client_of(cortex.url, bearer(reader)) as client:
        assert "problems" in (await client.get("/health")).json()
        assert code(await client.post("/v1/chat/completions", json=CHAT)) == (403, "verb_not_allowed")
    async with client_of(cortex.url, bearer(secret[:-1])) as client:
        assert code(await client.get("/v1/models")) == (401, "invalid_api_key")
        assert (await client.get("/health")).status_code == 200


async def test_open_gateway_checks_and_names_keys_and_ignores_the_rest(tmp_path):
    async with running_gateway(tmp_path) as running:
        secret = await new_key(running.gateway, "alice", may=["helexa/small"])
        async with client_of(running.url) as client:
            for headers in ({}, bearer("sk-whatever"), bearer(secret)):
                with capture_logs() as logged:
                    assert (await client.post("/v1/chat/completions", json=CHAT, headers=headers)).status_code == 200
                    await until(lambda: any(line["event"] == "request" for line in logged))
                [line] = [line for line in logged if line["event"] == "request"]
                assert line.get("key") == ("alice" if headers == bearer(secret) else None)
            wrong = await client.post("/v1/chat/completions", json=CHAT, headers=bearer(new_secret("nobody")))
            assert code(wrong) == (401, "invalid_api_key")
            other = await client.post(
                "/v1/chat/completions", json=CHAT | {"model": "helexa/large"}, headers=bearer(secret)
            )
            assert code(other) == (403, "model_not_allowed")
            assert "problems" in (await client.get("/health")).json()


@pytest.mark.parametrize("mode", [None, "keys"])
async def test_beyond_loopback_a_gateway_starts_only_in_a_mode_that_is_written_down(tmp_path, mode):
    listen = GatewaySettings(listen=Listen("0.0.0.0", 0), metrics_listen=Listen("127.0.0.1", 0))
    access = AccessSettings(mode=mode)
    if mode is None:
        refused = pytest.RaisesExc(CannotStart, match='mode = "keys"')
        with pytest.RaisesGroup(refused, flatten_subgroups=True):
            async with running_gateway(tmp_path, gateway=listen, access=access):
                pass
    else:
        async with running_gateway(tmp_path, gateway=listen, access=access) as running:
            assert running.gateway.access_parts.hosts.is_on is False


async def test_foreign_host_names_are_misdirected_while_the_gateway_is_open(tmp_path):
    """A page of evil.example whose name now leads to 127.0.0.1 reads and sends nothing; on both ports."""
    async with running_gateway(tmp_path, access=AccessSettings(allowed_hosts=("gpu.example.org",))) as running:
        metrics = f"http://{running.addresses.metrics}"
        async with client_of(running.url) as client:
            for url in (
                "/v1/models",
                "/health",
                "/v1/chat/completions",
                f"{metrics}/metrics",
                f"{metrics}/admin/fleet",
            ):
                answer = await client.get(url, headers={"host": "evil.example:31313"})
                assert code(answer) == (421, "misdirected_request"), url
                assert "access-control-allow-origin" not in answer.headers
            answer = await client.post("/v1/messages", headers={"host": "evil.example", "anthropic-version": "1"})
            assert (answer.status_code, answer.json()["type"]) == (421, "error")
            for host in (
                "127.0.0.1",
                "[::1]:1",
                "gpu-1",
                "x.localhost:9",
                "a.local",
                "b.internal",
                "GPU.example.ORG.:1",
            ):
                assert (await client.get("/v1/models", headers={"host": host})).status_code == 200, host
    async with running_gateway(tmp_path, access=KEYS) as running, client_of(running.url) as client:
        secret = await new_key(running.gateway, "alice")
        answer = await client.get("/v1/models", headers={"host": "api.example.org"} | bearer(secret))
        assert answer.status_code == 200


# What a key sees ......................................................................................................


async def test_headers_that_are_huge_or_malformed_are_no_key(cortex):
    """Each gets its 4xx, and the gateway goes on; nothing of them comes back."""
    secret = await new_key(cortex.gateway, "alice")
    async with client_of(cortex.url) as client:
        for headers in (
            [(b"authorization", b"Bearer " + b"ctx_" + b"A" * 50_000)],
            [(b"authorization", b"Bearer ctx_a_" + b"\xff\xfe" * 100)],
            [(b"authorization", b"Bearer " * 1000 + secret.encode())],
            [(b"authorization", b"Bearer\t" + secret.encode())],
            [(b"authorization", f"Bearer {secret}, Bearer {secret}".encode())],
            [(b"authorization", f"Bearer {secret};".encode())],
            [(b"authorization", f"Bearer {secret}\u00a0".encode())],
            [(b"authorization", f'Bearer "{secret}"'.encode())],
            [(b"authorization", f"Bearer {secret}".encode()), (b"authorization", b"Bearer ctx_b_" + b"x" * 51)],
            [(b"x-api-key", b"' OR 1=1 --")],
            [(b"x-api-key", b"ctx_' OR '1'='1_" + b"x" * 51)],
            [(b"cookie", f"key={secret}".encode())],
        ):
            answer = await client.get("/v1/models", headers=headers)
            assert code(answer) == (401, "invalid_api_key"), headers[0][1][:60]
            assert secret not in answer.text
        too_large = await client.get("/v1/models", headers=[(b"authorization", b"Bearer ctx_" + b"A" * 70_000)])
        assert too_large.status_code == 431
        for url in (f"/v1/models?key={secret}", f"/v1/models?api_key={secret}"):
            assert code(await client.get(url)) == (401, "invalid_api_key")
        assert (await client.get("/v1/models", headers=bearer(secret))).status_code == 200


async def test_page_of_a_foreign_origin_has_no_key(cortex):
    """CORS lets it read answers, and the only answer it gets is 401: no cookie and no browser setting is a key.

    The admin port allows no page at all, and its session's cookie is not for other sites.
    """
    page = {"origin": "https://evil.example", "content-type": "text/plain"}
    metrics = f"http://{cortex.addresses.metrics}"
    ops = await new_key(cortex.gateway, "ops", verbs=ALL_VERBS)
    async with client_of(cortex.url) as client:
        signed_in = await client.post(f"{metrics}/admin/session", json={"key": ops})
        assert "SameSite=Strict" in signed_in.headers["set-cookie"]
        answer = await client.post("/v1/chat/completions", json=CHAT, headers=page)
        assert code(answer) == (401, "invalid_api_key")
        for method, path in (("GET", "/admin/keys"), ("POST", "/admin/keys"), ("OPTIONS", "/admin/keys")):
            answer = await client.request(method, f"{metrics}{path}", headers=page)
            assert "access-control-allow-origin" not in answer.headers
        answer = await client.post(f"{metrics}/admin/keys", json={"name": "mine"}, headers=page)
        assert code(answer) == (403, "csrf_missing")


async def test_scope_limits_what_a_key_sees_and_may_ask_for(cortex):
    """Names outside the scope appear nowhere, not even as hints; what an alias leads to is not checked."""
    secret = await new_key(cortex.gateway, "alice", may=["helexa/*"])
    async with client_of(cortex.url, bearer(secret)) as client:
        listed = [entry["id"] for entry in (await client.get("/v1/models")).json()["data"]]
        assert listed == ["helexa/large", "helexa/small"]
        anthropic_list = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert {entry["id"] for entry in anthropic_list.json()["data"]} == set(listed)
        assert (await client.get("/v1/models/helexa/small")).status_code == 200
        hidden = await client.get(f"/v1/models/{SMALL}")
        assert code(hidden) == (404, "model_not_found")
        assert "helexa/small" not in hidden.text
        near = await client.get("/v1/models/helexa/smal")
        assert "did you mean 'helexa/small'" in near.text

        answer = await client.post("/v1/chat/completions", json=CHAT)
        assert (answer.status_code, answer.headers["x-cortex-model"]) == (200, SMALL)
        refused = await client.post("/v1/chat/completions", json=CHAT | {"model": LARGE})
        assert code(refused) == (403, "model_not_allowed")
        assert LARGE in refused.json()["error"]["message"]
        form = {"files": {"file": b"x"}, "data": {"model": LARGE}}
        assert code(await client.post("/v1/audio/transcriptions", **form)) == (403, "model_not_allowed")
        counted = await client.post("/v1/messages/count_tokens", json=CHAT | {"model": LARGE})
        assert counted.status_code == 403
        unknown = await client.post("/v1/chat/completions", json=CHAT | {"model": "helexa/smalll"})
        assert "did you mean 'helexa/small'" in unknown.text

    narrow = await new_key(cortex.gateway, "bob", may=["helexa/smal?", "Qwen/Qwen3-1.7b"])
    async with client_of(cortex.url, bearer(narrow)) as client:
        unknown = await client.post("/v1/chat/completions", json=CHAT | {"model": "Qwen/Qwen3-1.7b"})
        assert code(unknown) == (404, "model_not_found")
        assert SMALL not in unknown.text


async def test_every_answer_to_a_limited_key_tells_how_much_is_left(cortex):
    """Look-ups and errors too; in Anthropic's names to its clients. A key without limits has none."""
    limited = await new_key(cortex.gateway, "limited", rpm=60, tpm=6000, may=["helexa/*"])
    free = await new_key(cortex.gateway, "free")
    look_ups = ("/v1/models", "/v1/models/helexa/small", "/v1/models/none", "/v1/usage", "/v1/nowhere", "/v1/chat/x")
    async with client_of(cortex.url, bearer(limited)) as client:
        answers = [await client.get(path) for path in look_ups]
        answers.append(await client.post("/v1/chat/completions", content=b"{"))
        answers.append(await client.post("/v1/chat/completions", json=CHAT | {"model": LARGE}))
        answers.append(await client.get("/v1/chat/completions"))
        for answer in answers:
            assert answer.headers["x-ratelimit-limit-requests"] == "60", (answer.url, answer.status_code)
            assert answer.headers["x-ratelimit-remaining-tokens"] == "6000"
        anthropic_answer = await client.get("/v1/models", headers={"anthropic-version": "2023-06-01"})
        assert anthropic_answer.headers["anthropic-ratelimit-requests-limit"] == "60"
        assert "x-ratelimit-limit-requests" not in anthropic_answer.headers
    assert {answer.status_code for answer in answers} == {200, 400, 403, 404, 405}
    async with client_of(cortex.url, bearer(free)) as client:
        assert "x-ratelimit-limit-requests" not in (await client.get("/v1/models")).headers
    async with client_of(cortex.url) as client:
        assert "x-ratelimit-limit-requests" not in (await client.get("/v1/models")).headers


async def test_key_is_named_in_log_and_explain_and_its_secret_is_not(cortex):
    """The log has the name and id of the key and never the secret. Of headers, test_header_policy says what passes."""
    secret = await new_key(cortex.gateway, "alice", verbs=["infer", "read"])
    key_id = secrets_of_keys.id_of(secret)
    with capture_logs() as logged:
        async with client_of(cortex.url, bearer(secret) | {"x-api-key": secret}) as client:
            answer = await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
            assert answer.status_code == 200
            # In every wrong place: a path, a model's name, a request's id.
            await client.get(f"/{secret}")
            await client.post("/v1/chat/completions", json=CHAT | {"model": secret})
            await client.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": secret})
    lines = [line for line in logged if line["event"] == "request"]
    assert [(line["key"], line["key_id"]) for line in lines] == [("alice", key_id)] * 3
    assert secret not in json.dumps(logged, default=str)
    async with admin_of(cortex, secret) as admin:
        [explained] = (await admin.get("/admin/requests/mine")).json()["requests"]
        assert explained["key"] == {"id": key_id, "name": "alice"}
        assert secret not in json.dumps(explained)


async def test_official_sdks_raise_their_typed_errors(cortex):
    scoped = await new_key(cortex.gateway, "alice", may=["other"])
    options = {"max_retries": 0, "timeout": SAFETY_NET_S}
    for key, one, other in (
        ("ctx_nobody", openai.AuthenticationError, anthropic.AuthenticationError),
        (new_secret("nobody"), openai.AuthenticationError, anthropic.AuthenticationError),
        (scoped, openai.PermissionDeniedError, anthropic.PermissionDeniedError),
    ):
        client = openai.OpenAI(base_url=f"{cortex.url}/v1", api_key=key, **options)
        with pytest.raises(one) as caught:
            await trio.to_thread.run_sync(lambda client=client: client.chat.completions.create(**CHAT))
        assert caught.value.code in {"invalid_api_key", "model_not_allowed"}
        client.close()
        client = anthropic.Anthropic(base_url=cortex.url, api_key=key, **options)
        with pytest.raises(other):
            await trio.to_thread.run_sync(lambda client=client: client.messages.create(max_tokens=9, **CHAT))
        client.close()
