"""The console over HTTP on real sockets: pages, sessions, events, playground; and what an attacker may try."""

from __future__ import annotations

import json
import re
from contextlib import aclosing, asynccontextmanager

import httpx
import pytest
import trio
from fakes.patience import SAFETY_NET_S, until
from fakes.running import LARGE, PROBE, SMALL, running_gateway

from gateway.config.settings import AdminSettings, CaptureSettings
from gateway.server.console.assets import load_assets
from gateway.server.console.sessions import cookie_name


@pytest.fixture
async def page(cortex):
    """A browser: it keeps cookies."""
    async with httpx.AsyncClient(base_url=admin_url(cortex), trust_env=False, timeout=SAFETY_NET_S) as client:
        yield client


def admin_url(cortex):
    return f"http://{cortex.addresses.metrics}"


async def sign_in(page, key="secret"):
    """Sign in; the headers that a change needs."""
    answer = await page.post("/admin/session", json={"key": key})
    assert answer.status_code == 201, answer.text
    return {"x-cortex-csrf": answer.json()["csrf"]}


# Pages ................................................................................................................


async def test_page_is_served_with_strict_headers(page):
    """Nothing inline, nothing foreign, no framing: for the page and every file."""
    for path in ("/", "/console/main.js", "/console/console.css", "/console/pages/overview.js"):
        answer = await page.get(path)
        assert answer.status_code == 200, path
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'self';")
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
    html = (await page.get("/")).text
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=|https?:", html)


async def test_unchanged_file_is_not_sent_again(page):
    first = await page.get("/console/main.js")
    again = await page.get("/console/main.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await page.head("/console/main.js")).headers["content-length"] == first.headers["content-length"]


async def test_browser_keeps_every_file_of_a_version(page):
    """The page itself is asked for each time, and names files whose addresses change with their content."""
    answer = await page.get("/")
    assert answer.headers["cache-control"] == "no-cache"
    paths = re.findall(r'(?:src|href)="(/console/[^"]+)"', answer.text)
    assert len(paths) > 10
    for path in paths:
        file = await page.get(path)
        assert (file.status_code, file.headers["cache-control"]) == (200, "private, max-age=31536000, immutable"), path
    other = paths[0].replace(load_assets().version, "0" * 16)  # of a page that an earlier version of the gateway sent
    assert (await page.get(other)).headers["cache-control"] == "no-cache"


@pytest.mark.parametrize(
    "path", ["/console/", "/console/nothing.js", "/console/0123456789abcdef/nothing.js", "/console/%2e%2e/assets.py"]
)
async def test_other_files_are_not_served(page, path):
    assert (await page.get(path)).status_code == 404


def test_console_is_small_and_whole():
    """All files together; every module that one imports exists, and every file is used."""
    assets = load_assets().files
    assert sum(len(asset.body) for asset in assets.values()) < 200_000
    named = set()
    for name, asset in assets.items():
        if name.endswith((".js", ".html")) and "vendor" not in name:
            text = asset.body.decode()
            for found in re.findall(r"""(?:from|import\(|src=|href=)\s*["']([./][^"'#]+)["']""", text):
                if found.startswith("/admin/"):  # what the page asks for first, as a preload
                    continue
                base = name.rpartition("/")[0]
                path = found.removeprefix(f"/console/{load_assets().version}/")
                path = path if found.startswith("/") else _joined(base, found)
                assert path in assets, (name, found)
                named.add(path)
            assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text), name
    assert set(assets) - named == {"index.html", "vendor/uPlot.LICENSE"}


def _joined(base, relative):
    parts = [part for part in base.split("/") if part]
    for part in relative.split("/"):
        if part == "..":
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


# Sessions .............................................................................................................


async def test_session_reads_and_changes(cortex, page):
    """The cookie replaces the key; a change needs the CSRF value as well."""
    assert (await page.get("/admin/session")).status_code == 401
    assert (await page.get("/admin/fleet")).status_code == 401
    csrf = await sign_in(page)
    assert (await page.get("/admin/fleet")).status_code == 200
    assert (await page.get("/admin/session")).json()["name"] == "admin"
    assert (await page.post("/admin/nodes/beast/drain", headers=csrf)).status_code == 200
    assert cortex.gateway.fleet.nodes["beast"].draining
    assert (await page.delete("/admin/session", headers=csrf)).status_code == 204
    assert (await page.get("/admin/fleet")).status_code == 401


async def test_cookie_is_out_of_reach_of_scripts_and_other_sites(cortex, page):
    answer = await page.post("/admin/session", json={"key": "secret"})
    cookie = answer.headers["set-cookie"]
    name = cookie_name(cortex.addresses.metrics.port)
    assert re.fullmatch(rf"{name}=[\w-]{{43}}; Path=/; Max-Age=43200; HttpOnly; SameSite=Strict", cookie)
    behind_tls = await page.post("/admin/session", json={"key": "secret"}, headers={"x-forwarded-proto": "https"})
    assert behind_tls.headers["set-cookie"].endswith("; Secure")


@pytest.mark.parametrize("key", ["wrong", "", "secret2", "x" * 5000])
async def test_wrong_key_does_not_sign_in(page, key):
    answer = await page.post("/admin/session", json={"key": key})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert "set-cookie" not in answer.headers


async def test_change_of_another_site_is_refused(cortex, page):
    """It has the cookie at most: not the CSRF value, and a form cannot send JSON."""
    await sign_in(page)
    for headers in ({}, {"x-cortex-csrf": ""}, {"x-cortex-csrf": "guess"}):
        for method, path in (
            ("POST", "/admin/nodes/beast/drain"),
            ("DELETE", "/admin/requests/x"),
            ("PUT", "/admin/catalogue"),
            ("DELETE", "/admin/session"),
            ("POST", "/admin/playground/v1/chat/completions"),
        ):
            answer = await page.request(method, path, headers=headers)
            assert (answer.status_code, answer.json()["error"]["code"]) == (403, "csrf_missing"), path
    assert not cortex.gateway.fleet.nodes["beast"].draining
    form = await page.post("/admin/session", data={"key": "secret"})
    assert form.status_code == 415
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        answer = await page.post("/admin/session", content=b'{"key":"secret"}', headers={"content-type": kind})
        assert answer.status_code == 415


async def test_session_id_is_never_the_clients(cortex, page):
    """Fixation: an id that an attacker planted does not become the session of the one who signs in."""
    name = cookie_name(cortex.addresses.metrics.port)
    page.cookies.set(name, "planted", domain="127.0.0.1")
    await sign_in(page)
    stolen = httpx.AsyncClient(
        base_url=admin_url(cortex), trust_env=False, timeout=SAFETY_NET_S, cookies={name: "planted"}
    )
    async with stolen:
        assert (await stolen.get("/admin/fleet")).status_code == 401
    first = page.cookies.get(name, domain="127.0.0.1") or page.cookies.get(name)
    await sign_in(page)
    async with httpx.AsyncClient(
        base_url=admin_url(cortex), trust_env=False, timeout=SAFETY_NET_S, cookies={name: first}
    ) as old:
        assert (await old.get("/admin/fleet")).status_code == 401  # signing in again ends the session before


async def test_key_beside_a_cookie_counts(page):
    """A program that sends a key needs no CSRF value, and a wrong key is refused whatever the cookie is."""
    await sign_in(page)
    good, bad = ({"authorization": f"Bearer {key}"} for key in ("secret", "wrong"))
    assert (await page.post("/admin/reload", headers=good)).status_code == 200
    assert (await page.get("/admin/fleet", headers=bad)).status_code == 401


async def test_without_a_token_there_is_no_console_session(tmp_path):
    async with (
        running_gateway(tmp_path, admin=AdminSettings()) as cortex,
        httpx.AsyncClient(base_url=admin_url(cortex), trust_env=False, timeout=SAFETY_NET_S) as client,
    ):
        assert (await client.post("/admin/session", json={"key": ""})).status_code == 401
        assert (await client.get("/admin/events")).status_code == 401


# Events ...............................................................................................................


@asynccontextmanager
async def events(page, headers=None):
    """The events of a page, as an iterator of (kind, id, data)."""
    async with page.stream("GET", "/admin/events", headers=headers or {}) as response:
        assert response.status_code == 200, await response.aread()
        assert response.headers["content-type"] == "text/event-stream"
        async with aclosing(response.aiter_lines()) as lines:
            yield _Events(lines)


class _Events:
    """Parses lines of a stream of events."""

    def __init__(self, lines):
        self._lines = lines
        self._kind = self._id = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        while True:
            name, _, value = (await anext(self._lines)).partition(": ")
            if name == "event":
                self._kind = value
            elif name == "id":
                self._id = value
            elif name == "data":
                return self._kind, self._id, json.loads(value)


async def first(stream, wanted, test=lambda _: True):
    """The first event of this kind that passes the test."""
    with trio.fail_after(SAFETY_NET_S):
        async for kind, last_id, data in stream:
            if kind == wanted and test(data):
                return last_id, data
    raise AssertionError(f"no {wanted}")


async def test_events_show_a_request_from_its_beginning_to_its_end(cortex, page, http):
    await sign_in(page)
    async with events(page) as stream:
        _, fleet = await first(stream, "fleet")
        assert [node["name"] for node in fleet["nodes"]] == ["beast"]
        assert {model["id"] for model in fleet["nodes"][0]["models"]} == {SMALL, LARGE}
        _, aliases = await first(stream, "alias")
        assert {alias["name"] for alias in aliases["aliases"]} == {"helexa/small", "helexa/large", "helexa/dead"}
        await http.post(
            "/v1/chat/completions", json={"model": "helexa/small", "messages": PROBE}, headers={"x-request-id": "mine"}
        )
        _, data = await first(stream, "request", lambda data: data["ended"]["count"])
    assert data["ended"]["count"] == 1
    ended = data["ended"]["columns"]
    assert (ended["request_id"], ended["alias"], ended["model"], ended["node"]) == (
        "mine",
        "helexa/small",
        SMALL,
        "beast",
    )
    assert ended["outcome"] == "ok"
    assert ended["completion_tokens"] > 0


async def test_new_page_gets_everything_first(page):
    """One event of each kind, problems first."""
    await sign_in(page)
    kinds = []
    async with events(page) as stream:
        async for kind, _, _ in stream:
            kinds.append(kind)
            if len(kinds) == 6:
                break
    assert kinds == ["resync", "problem", "fleet", "alias", "request", "log"]


async def test_problem_appears_in_the_events(cortex, page):
    """Drained meanwhile; an alias without a model is one from the start."""
    csrf = await sign_in(page)
    async with events(page) as stream:
        _, data = await first(stream, "problem")
        assert {problem["code"] for problem in data["problems"]} >= {"alias_unservable"}
        await page.post("/admin/nodes/beast/drain", headers=csrf)
        await first(stream, "problem", lambda data: "node_drained" in {each["code"] for each in data["problems"]})


async def test_page_resumes_after_a_broken_connection(page):
    await sign_in(page)
    other = events(page)
    async with other as keeps_the_feed_running:
        await first(keeps_the_feed_running, "request")
        async with events(page) as stream:
            last_id, _ = await first(stream, "request", lambda data: "rates" in data)
        async with events(page, {"last-event-id": last_id}) as stream:
            async for kind, resumed, data in stream:
                assert kind != "resync"
                if kind == "request":
                    assert "rates" in data
                    assert int(resumed.split("-")[1]) > int(last_id.split("-")[1])
                    break


async def test_stream_ends_when_the_session_ends(cortex, page):
    csrf = await sign_in(page)
    async with events(page) as stream:
        await first(stream, "request")
        await page.delete("/admin/session", headers=csrf)
        await first(stream, "signed_out")
    await until(lambda: cortex.gateway.console.feed.listeners == 0)


async def test_stream_ends_when_its_key_is_revoked(cortex, page, monkeypatch):
    """Of a page and of a program that sends a key."""
    await sign_in(page)
    valid = True
    sessions = cortex.gateway.console.sessions
    [(hashed, session)] = sessions._sessions.items()
    operator = type(session.operator)("olga", session.operator.verbs, lambda: valid)
    sessions._sessions[hashed] = type(session)(operator, session.csrf, session.expires_at)
    async with events(page) as stream:
        await first(stream, "request")
        valid = False
        await first(stream, "signed_out")


async def test_revoking_a_key_ends_its_session_and_its_stream(cortex, page):
    """With a real key: of a page, and of a program that follows the events with it."""
    token = {"authorization": "Bearer secret"}
    fields = {"name": "<b>olga</b>", "verbs": ["read"]}
    created = (await page.post("/admin/keys", json=fields, headers=token)).json()
    csrf = await sign_in(page, created["secret"])
    assert (await page.get("/admin/session")).json()["name"] == "<b>olga</b>"
    assert (await page.post("/admin/nodes/beast/drain", headers=csrf)).status_code == 403  # it may read only
    headers = {"authorization": f"Bearer {created['secret']}"}
    async with (
        httpx.AsyncClient(base_url=admin_url(cortex), trust_env=False, timeout=SAFETY_NET_S) as program,
        events(page) as shown,
        events(program, headers) as followed,
    ):
        await first(shown, "request")
        await first(followed, "request")
        assert (await page.delete(f"/admin/keys/{created['id']}", headers=token)).status_code == 200
        await first(shown, "signed_out")
        await first(followed, "signed_out")
    assert (await page.get("/admin/fleet")).status_code == 401
    assert len(cortex.gateway.console.sessions) == 0


async def test_events_need_a_key(page):
    for headers in ({}, {"authorization": "Bearer wrong"}, {"cookie": "cortex_session_1=x"}):
        assert (await page.get("/admin/events", headers=headers)).status_code == 401
    async with events(page, {"authorization": "Bearer secret"}) as stream:
        await first(stream, "fleet")


async def test_page_that_leaves_is_not_counted(cortex, page):
    await sign_in(page)
    async with events(page) as stream:
        await first(stream, "fleet")
        assert cortex.gateway.console.feed.listeners == 1
    await until(lambda: cortex.gateway.console.feed.listeners == 0)


# Playground ...........................................................................................................


async def test_playground_reaches_a_model(cortex, page):
    """Through the admin port, with the session: the page has no key."""
    csrf = await sign_in(page)
    body = {"model": "helexa/small", "messages": PROBE, "stream": True}
    answer = await page.post("/admin/playground/v1/chat/completions", json=body, headers=csrf)
    assert answer.status_code == 200
    assert answer.headers["x-cortex-model"] == SMALL
    assert answer.text.rstrip().endswith("data: [DONE]")
    assert (await page.post("/admin/playground/v1/models", json=body, headers=csrf)).status_code == 404


async def test_playground_needs_a_session(page):
    body = {"model": "helexa/small", "messages": PROBE}
    answer = await page.post("/admin/playground/v1/chat/completions", json=body)
    assert answer.status_code == 401
    answer = await page.post(
        "/admin/playground/v1/chat/completions", json=body, headers={"authorization": "Bearer secret"}
    )
    assert answer.status_code == 401


async def test_figures_of_the_last_hour(page):
    await sign_in(page)
    answer = (await page.get("/admin/figures")).json()
    assert answer["interval_s"] == 10
    assert isinstance(answer["points"], list)


# The public port's page ...............................................................................................


@pytest.mark.parametrize("accept", ["text/html,application/xhtml+xml,*/*;q=0.8", "TEXT/HTML"])
async def test_browser_gets_a_page_and_a_client_json(http, accept):
    """Caches keep them apart."""
    page = await http.get("/", headers={"accept": accept})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["vary"] == "accept"
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "helexa/small" in page.text
    for other in ("*/*", "application/json", ""):
        answer = await http.get("/", headers={"accept": other})
        assert (answer.json()["name"], answer.headers["vary"]) == ("cortex", "accept")


async def test_page_shows_names_as_text(tmp_path):
    """Of models, and of the host that the client names."""
    hostile = "<script>alert(1)</script>"
    models = f'[aliases]\n"{hostile}" = "{SMALL}"\n'
    async with (
        running_gateway(tmp_path, models_toml=models) as cortex,
        httpx.AsyncClient(trust_env=False, timeout=SAFETY_NET_S) as client,
    ):
        headers = {"accept": "text/html", "host": 'localhost"><script>'}
        text = (await client.get(f"{cortex.url}/", headers=headers)).text
    assert "<script" not in text
    assert "&lt;script&gt;alert(1)" in text


# Captures .............................................................................................................


async def test_capture_keeps_texts_of_its_alias_only(tmp_path):
    """Streamed and whole; not before it began, not of other names, and nothing after it has ended."""
    allowed = CaptureSettings(enabled=True)
    async with (
        running_gateway(tmp_path, capture=allowed) as cortex,
        httpx.AsyncClient(base_url=admin_url(cortex), trust_env=False, timeout=SAFETY_NET_S) as page,
    ):
        csrf = await sign_in(page)

        async def ask(model, **more):
            body = {"model": model, "messages": PROBE, **more}
            return await page.post(f"{cortex.url}/v1/chat/completions", json=body)

        async def texts():
            return (await page.get("/admin/capture")).json()

        await ask("helexa/small")
        body = {"alias": "helexa/small", "seconds": 600}
        assert (await page.post("/admin/capture", json=body, headers=csrf)).status_code == 201
        for model, more in (
            ("helexa/small", {"stream": True}),
            ("helexa/large", {}),
            (SMALL, {}),
            ("helexa/small", {}),
        ):
            assert (await ask(model, **more)).status_code == 200
        await until(lambda: len(cortex.gateway.capture.running.entries) == 2)  # a client has the last byte before
        kept = (await texts())["requests"]
        assert [(each["alias"], each["model"], each["node"]) for each in kept] == [("helexa/small", SMALL, "beast")] * 2
        for each in kept:
            assert each["messages"] == [{"role": "user", "text": PROBE[0]["content"]}]
            assert "Tbilisi" in each["answer"]
        async with events(page) as stream:
            _, data = await first(stream, "problem")
        assert (data["capture"]["alias"], data["capture"]["kept"]) == ("helexa/small", 2)
        assert (await page.delete("/admin/capture", headers=csrf)).status_code == 200
        assert await texts() == {"capture": None, "requests": []}
        lines = (await page.get("/admin/audit")).json()["lines"]
        assert next(line["outcome"] for line in lines if line["event"] == "capture") == "running"


async def test_capture_must_be_allowed_and_name_an_alias(page):
    """By default there is none."""
    csrf = await sign_in(page)
    answer = await page.post("/admin/capture", json={"alias": "helexa/small"}, headers=csrf)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "conflict")
    assert (await page.post("/admin/capture", json={"alias": "nobody"}, headers=csrf)).status_code == 404
    assert (await page.delete("/admin/capture", headers=csrf)).status_code == 404
