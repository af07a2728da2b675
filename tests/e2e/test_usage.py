"""Limits, ledger and usage of whole gateways on real sockets: SDKs, the command line, stores that go and come."""

import csv
import dataclasses
import io
import json
import os
import signal
from functools import partial

import anthropic
import httpx
import openai
import pytest
import trio
from fakes.keys import bearer, new_key
from fakes.ledger_rows import open_store, totals
from fakes.patience import SAFETY_NET_S, until
from fakes.process import cortex, running_cortex
from fakes.running import MODELS_TOML, PROBE, SMALL, one_neuron, running_gateway, settled
from sqlalchemy import select

from gateway.access.ledger import ledger as ledger_module
from gateway.access.store.database import Database
from gateway.access.store.schema import usage
from gateway.config.settings import AccessSettings, EnergySettings, LedgerSettings, MetricsSettings, StoreSettings

PRICED = MODELS_TOML.replace("vram_mb = 4096\n", "vram_mb = 4096\ncost.input = 1.0\ncost.output = 4.0\n")
KEYS = AccessSettings(mode="keys")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(ledger_module, "RETRY_S", 0.1)


def ask(running, secret, *, stream=False, **more):
    """One chat request; its usage as the client got it."""
    body = {"model": "helexa/small", "messages": PROBE, **more}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    answer = httpx.post(
        f"{running.url}/v1/chat/completions",
        json=body,
        headers=bearer(secret),
        timeout=SAFETY_NET_S,
        trust_env=False,
    )
    if answer.status_code != 200:
        return answer, None
    data = answer.json() if not stream else json.loads(answer.text.split("data: ")[-2])
    return answer, data["usage"]


def of_thread(call, *args, **more):
    return trio.to_thread.run_sync(partial(call, *args, **more))


async def until_written(running, rows):
    await settled(running.gateway)
    ledger = running.gateway.usage_parts.ledger
    await until(lambda: not ledger._waiting and ledger.problem is None)
    database = open_store(f"sqlite:///{running.models_toml.parent / 'cortex.db'}")
    try:
        assert totals(database)[0] == rows
    finally:
        database.close()


# Official SDKs...


async def test_openais_sdk_sees_its_rate_limit_error_and_honours_retry_after(tmp_path):
    async with running_gateway(tmp_path, access=KEYS) as running:
        secret = await new_key(running.gateway, "alice", rpm=30)

        def use(retries):
            client = openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret, max_retries=retries)
            with client:
                return client.chat.completions.create(model="helexa/small", messages=PROBE)

        with pytest.raises(openai.RateLimitError) as caught:
            for _ in range(40):
                await of_thread(use, 0)
        error = caught.value
        assert (error.status_code, error.code, error.type) == (429, "rate_limit_exceeded", "rate_limit_error")
        assert 1 <= int(error.response.headers["retry-after"]) <= 2
        assert error.response.headers["x-ratelimit-remaining-requests"] == "0"
        answer = await of_thread(use, 2)  # it waits, and asks again
        assert answer.usage.completion_tokens > 0
        assert running.gateway.usage_parts.limiter.live == 0


async def test_openais_sdk_does_not_repeat_what_a_spent_budget_refuses(tmp_path):
    async with running_gateway(tmp_path, access=KEYS) as running:
        secret = await new_key(running.gateway, "alice", budgets=["tokens 30/month"])
        requests = running.gateway.request_log

        def use():
            with openai.OpenAI(base_url=f"{running.url}/v1", api_key=secret, max_retries=5) as client:
                return client.chat.completions.create(model="helexa/small", messages=PROBE)

        await of_thread(use)
        before = requests.served
        with pytest.raises(openai.RateLimitError) as caught:
            await of_thread(use)
        await settled(running.gateway)
        assert (caught.value.code, caught.value.type) == ("insufficient_quota", "insufficient_quota")
        assert requests.served == before + 1


async def test_anthropics_sdk_sees_its_rate_limit_error(tmp_path):
    async with running_gateway(tmp_path, access=KEYS) as running:
        secret = await new_key(running.gateway, "alice", rpm=30)

        def use(retries):
            with anthropic.Anthropic(base_url=running.url, api_key=secret, max_retries=retries) as client:
                return client.messages.with_raw_response.create(model="helexa/small", messages=PROBE, max_tokens=50)

        first = await of_thread(use, 0)
        assert first.headers["anthropic-ratelimit-requests-limit"] == "30"
        with pytest.raises(anthropic.RateLimitError) as caught:
            for _ in range(40):
                await of_thread(use, 0)
        assert caught.value.response.headers["anthropic-ratelimit-requests-remaining"] == "0"
        assert (await of_thread(use, 2)).parse().usage.output_tokens > 0


# Reports...


async def test_usage_is_what_clients_counted_and_each_key_sees_its_own(tmp_path):
    more = {
        "access": KEYS,
        "energy": EnergySettings(tariff=(0.5,)),
        "ledger": LedgerSettings(currency="EUR", timezone="Europe/Berlin"),
        "metrics": MetricsSettings(per_key=True),
    }
    async with running_gateway(tmp_path, models_toml=PRICED, **more) as running:
        secrets = {name: await new_key(running.gateway, name, tpm=10**6) for name in ("alice", "bob")}
        counted = {name: [0, 0, 0] for name in secrets}
        for name, times in (("alice", 3), ("bob", 2)):
            for number in range(times):
                _, used = await of_thread(ask, running, secrets[name], stream=number % 2 == 1)
                one = (1, used["prompt_tokens"], used["completion_tokens"])
                counted[name] = [before + more for before, more in zip(counted[name], one, strict=True)]
        await until_written(running, 5)

        def get(url, secret):
            return httpx.get(url, headers=bearer(secret), trust_env=False, timeout=SAFETY_NET_S)

        own = (await of_thread(get, f"{running.url}/v1/usage", secrets["alice"])).json()
        (row,) = own["rows"]
        assert row["name"] == "alice"
        assert [row["requests"], row["prompt_tokens"], row["completion_tokens"]] == counted["alice"]
        assert row["cost"] == pytest.approx((row["prompt_tokens"] + 4 * row["completion_tokens"]) / 1e6)
        assert own["limits"]["tpm"]["limit"] == 10**6
        assert "bob" not in json.dumps(own)
        for query in ("key=bob", "by=key&key=bob", "name=bob&since=30d", "by=key%20OR%201=1", "by=key';--", "since=0'"):
            tried = await of_thread(get, f"{running.url}/v1/usage?{query}", secrets["alice"])
            assert tried.status_code in {200, 400}, query
            assert "bob" not in json.dumps(tried.json().get("rows", [])), query
        assert (await of_thread(get, f"{running.url}/v1/usage/bob", secrets["alice"])).status_code == 404
        assert (await of_thread(get, f"{running.url}/v1/usage?by=planet", secrets["alice"])).status_code == 400
        assert (await of_thread(get, f"{running.url}/v1/usage?since=ever", secrets["alice"])).status_code == 400
        assert (await of_thread(get, f"{running.url}/v1/usage", "nothing")).status_code == 401

        admin = f"http://{running.addresses.metrics}"
        every = (await of_thread(get, f"{admin}/admin/usage?by=key&since=1h", "secret")).json()
        columns = ("requests", "prompt_tokens", "completion_tokens")
        assert {row["name"]: [row[column] for column in columns] for row in every["rows"]} == counted
        assert every["currency"] == "EUR"
        assert (await of_thread(get, f"{admin}/admin/usage", secrets["alice"])).status_code == 403
        listed = (await of_thread(get, f"{admin}/admin/keys", "secret")).json()["keys"]
        assert next(key for key in listed if key["name"] == "alice")["use"]["limits"]["tpm"]["limit"] == 10**6

        # The same by the command line, from the store and from the gateway.
        config = tmp_path / "cortex.toml"
        config.write_text('models_config = "models.toml"\n[ledger]\ncurrency = "EUR"\ntimezone = "Europe/Berlin"\n')
        shown = await of_thread(cortex, "usage", "-c", config, "--json")
        assert shown.returncode == 0, shown.stderr
        assert json.loads(shown.stdout)["rows"] == every["rows"]
        remote = await of_thread(cortex, "usage", "--url", admin, "--by", "alias", "--json", CORTEX_KEY="secret")
        (alias,) = json.loads(remote.stdout)["rows"]
        assert (alias["name"], alias["requests"]) == ("helexa/small", 5)
        assert alias["cost_per_million_tokens"] > 1
        table = await of_thread(cortex, "usage", "-c", config, "--by", "model", "--csv")
        (line,) = csv.DictReader(io.StringIO(table.stdout))
        assert (line["model"], line["requests"]) == (SMALL, "5")
        assert "helexa/small" in (await of_thread(cortex, "usage", "-c", config, "--by", "alias")).stdout
        metrics = (await of_thread(httpx.get, running.metrics_url, trust_env=False)).text
        assert 'cortex_key_requests_total{key="alice"} 3.0' in metrics


def test_usage_without_a_store_or_with_a_wrong_time_says_so(tmp_path):
    config = tmp_path / "cortex.toml"
    config.write_text('models_config = "models.toml"\n')
    (tmp_path / "models.toml").write_text("")
    shown = cortex("usage", "-c", config)
    assert (shown.returncode, "cortex.db" in shown.stderr) == (2, True)
    wrong = cortex("usage", "-c", config, "--since", "yesterday")
    assert (wrong.returncode, "7d" in wrong.stderr) == (1, True)


async def test_open_gateway_keeps_a_ledger_without_keys_and_none_if_told_so(tmp_path):
    async with running_gateway(tmp_path) as running:
        await of_thread(ask, running, "whatever")
        await until_written(running, 1)
    async with running_gateway(tmp_path, ledger=LedgerSettings(keep_days=0)) as running:
        answer, _ = await of_thread(ask, running, "whatever")
        assert answer.status_code == 200
        assert running.gateway.usage_parts.ledger is None


# Processes and stores...

SERVE = """
models_config = "models.toml"
[gateway]
listen = "127.0.0.1:0"
metrics_listen = "127.0.0.1:0"
[[neurons]]
name = "beast"
endpoint = "{url}"
"""


async def test_sigterm_loses_no_row(tmp_path):
    """The process ends right after the answers, and before the next batch is due."""
    simulated = one_neuron()[0]
    (tmp_path / "models.toml").write_text(MODELS_TOML)
    async with trio.open_nursery() as nursery:
        url = await nursery.start(lambda task_status: simulated.serve(task_status=task_status))
        (tmp_path / "cortex.toml").write_text(SERVE.format(url=url))
        with running_cortex("serve", "-c", tmp_path / "cortex.toml") as process:
            line = json.loads(await of_thread(process.log_line, '"listening"'))
            running = dataclasses.make_dataclass("Served", ["url"])(f"http://{line['api']}")
            for _ in range(20):
                await of_thread(ask, running, "whatever")
            os.kill(process.popen.pid, signal.SIGTERM)
            code, _, log = await of_thread(process.end)
            assert code == 0, log
        nursery.cancel_scope.cancel()
    database = open_store(f"sqlite:///{tmp_path / 'cortex.db'}")
    assert totals(database)[0] == 20
    database.close()


async def test_no_row_is_lost_or_doubled_while_the_store_is_gone_under_load(tmp_path, monkeypatch):
    """Requests go on with the keys read last; `/health` says that the ledger is behind."""
    monkeypatch.setattr(ledger_module, "MEMORY_ROWS", 10)
    async with running_gateway(tmp_path, access=KEYS) as running:
        secret = await new_key(running.gateway, "alice", budgets=["tokens 10M/month"])
        counted, stopping, path = [], [], tmp_path / "cortex.db"

        async def client():
            while not stopping:
                _, used = await of_thread(ask, running, secret)
                counted.append(used["total_tokens"])

        async def problems():
            answer = await of_thread(httpx.get, f"http://{running.addresses.metrics}/health", trust_env=False,
                                     headers=bearer("secret"))  # fmt: skip
            return {problem["code"] for problem in answer.json()["problems"]}

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(client)
            await until(lambda: len(counted) > 5)
            path.rename(tmp_path / "away")
            with trio.fail_after(SAFETY_NET_S):
                while "ledger_behind" not in await problems():
                    pass
            before = len(counted)
            await until(lambda: len(counted) > before + 30)
            assert list(tmp_path.glob("usage-*.spool"))
            (tmp_path / "away").rename(path)
            await until(lambda: running.gateway.usage_parts.ledger.problem is None)
            assert "ledger_behind" not in await problems()
            stopping.append(True)
        await until_written(running, len(counted))
        database = open_store(f"sqlite:///{path}")
        assert totals(database) == (len(counted), sum(counted))
        database.close()


async def test_two_gateways_on_one_store_share_a_budget(store_url, tmp_path):
    """Each knows what the other's clients spent, within a batch."""
    more = {"access": KEYS, "store": StoreSettings(url=store_url)}
    folders = [tmp_path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    async with (
        running_gateway(folders[0], **more) as first,
        running_gateway(folders[1], **more) as second,
    ):
        secret = await new_key(first.gateway, "alice", budgets=["tokens 300/month"])
        await second.gateway.access_parts.refresh.refresh()
        spent, refused = 0, 0
        with trio.fail_after(SAFETY_NET_S):
            while refused < 2:
                refused = 0
                for running in (first, second):
                    answer, used = await of_thread(ask, running, secret, max_tokens=20)
                    spent += used["total_tokens"] if used else 0
                    refused += answer.status_code == 429
                    await settled(running.gateway)
                    await until(lambda: not running.gateway.usage_parts.ledger._waiting)  # noqa: B023
        assert 200 < spent <= 300
    database = Database(store_url, tmp_path)
    nodes = database.read(lambda c: c.execute(select(usage.c.status)).scalars().all())
    database.close()
    assert nodes.count(200) > 5
