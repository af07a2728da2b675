"""A run of the bench: which requests are sent, in which order, and how many at a time.

    warm-up      one request to each tier, and one to each model that is to start cold, at the same time. A quick run
                 does not warm up tiers that are loaded, and goes on while another model starts cold
    probe        the reference question, one at a time: the ratio of large to small
    questions    all questions to each tier, a few at a time: correctness, and times under light load
    load         one long answer per request, 1, 4 and 16 at a time: throughput, and what waiting costs

Tiers take turns within a phase, so that drift of the machines affects all alike. Every request is streamed.
"""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import trio

from gateway.cli.bench.chat_client import Phase, Sample, ask
from gateway.cli.bench.questions import PROBE, Question, Reply, questions

__all__ = ["FULL", "QUICK", "Bench", "Plan", "Step", "UnavailableError"]

SILENCE_S = 1800.0  # a cold load may say nothing for as long as `deadlines.load_seconds`
CONNECT_S = 5.0


class UnavailableError(Exception):
    """No gateway answers, or it does not know the model."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Args:
        probes: Reference questions to each tier.
        per_kind: Questions of each kind to each tier; None for all.
        at_once: Questions at a time.
        levels: Requests at a time of the load phase, each with as many requests as `level`, at least `least`.
        least: As above.
        load_tokens: Length of an answer of the load phase.
        loads_all_tiers: Whether the load phase has each tier, or only the first.
        is_quick: Whether the warm-up is left out where possible.
        max_tokens: Most tokens of an answer to a question.
    """

    name: str
    probes: int
    per_kind: int | None
    at_once: int
    levels: tuple[int, ...]
    least: int
    load_tokens: int
    loads_all_tiers: bool
    is_quick: bool = False
    max_tokens: int = 1024


FULL = Plan("full", 3, None, 4, (1, 4, 16), 2, 32, loads_all_tiers=True)
QUICK = Plan("quick", 1, 1, 4, (1, 4, 16), 1, 32, loads_all_tiers=False, is_quick=True)


@dataclass(frozen=True, slots=True)
class Step:
    """Some requests of one phase that run together, `concurrency` at a time. `weight` is their share of the time."""

    phase: Phase
    tiers: tuple[str, ...]
    questions: tuple[Question, ...]
    concurrency: int
    weight: float

    @property
    def requests(self) -> int:
        """How many they are."""
        return len(self.questions) * len(self.tiers)

    def __str__(self) -> str:
        many = f", {self.concurrency} at a time" if self.concurrency > 1 else ""
        return f"{self.phase}: {', '.join(self.tiers)} ({self.requests} request{'s' * (self.requests != 1)}{many})"


@dataclass
class Bench:
    """One run against one gateway.

    Args:
        api: The base URL of the gateway's API.
        tiers: Models or aliases, from small to large.
        cold: Models to start cold.
        plan: How much is measured.
        key: A key of the gateway, or None.
        record: Called with every sample as soon as there is one.

    Attributes:
        models: The entries of `/v1/models` by id, as they were at the beginning.
        samples: All so far.
    """

    api: str
    tiers: tuple[str, ...]
    cold: tuple[str, ...]
    plan: Plan
    key: str | None = None
    record: Callable[[Sample], object] = lambda _: None
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)
    nonce: str = field(default_factory=lambda: secrets.token_hex(4))
    began: float = field(default_factory=time.perf_counter)

    @property
    def simulated(self) -> bool:
        """Whether simulated neurons have answered."""
        return any(sample.simulated for sample in self.samples)

    def target(self, tier: str) -> str:
        """The model that a tier stands for."""
        return str(self.models.get(tier, {}).get("alias_of") or tier)

    async def look(self, client: httpx.AsyncClient) -> None:
        """Read the gateway's models. Raises UnavailableError, also if it lacks one that is to be measured."""
        try:
            response = (await client.get(f"{self.api}/v1/models")).raise_for_status()
            self.models = {entry["id"]: entry for entry in response.json()["data"]}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"no answer from {self.api}: {error}") from error
        if not self.tiers:
            self.tiers = _default_tiers(self.models)
        if unknown := [name for name in (*self.tiers, *self.cold) if name not in self.models]:
            listed = ", ".join(self.models) or "nothing"
            raise UnavailableError(f"{self.api} does not list {', '.join(unknown)}; it lists {listed}")

    def steps(self) -> list[Step]:
        """The steps after the warm-up. Weights are guesses; the progress bar corrects them as it goes."""
        plan, tiers = self.plan, self.tiers
        asked = tuple(questions(plan.per_kind))
        found = [Step("probe", (tier,), (PROBE,), 1, 1.0) for _ in range(plan.probes) for tier in tiers]
        found += [
            Step("question", (tier,), asked, plan.at_once, 1.5 * len(asked) / min(plan.at_once, 4)) for tier in tiers
        ]
        loaded = tiers if plan.loads_all_tiers else tiers[:1]
        for level in plan.levels:
            long_answers = tuple(_long_answer(number) for number in range(max(level, plan.least)))
            weight = 1.5 * len(long_answers) / min(level, 4)
            found += [Step("load", (tier,), long_answers, level, weight) for tier in loaded]
        return found

    async def run(self, planned: Callable[[list[Step]], object], step: Callable[[Step], object]) -> None:
        """Send everything. Calls `planned` once with all steps, and `step` before each. Raises UnavailableError."""
        headers = {"accept-encoding": "identity"}
        if self.key is not None:
            headers["authorization"] = f"Bearer {self.key}"
        limits = httpx.Limits(max_connections=64)
        timeouts = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
        async with httpx.AsyncClient(timeout=timeouts, headers=headers, trust_env=False, limits=limits) as client:
            await self.look(client)
            steps, names = self.steps(), tuple(dict.fromkeys((*self.cold, *self.tiers)))
            beside = tuple(name for name in names if name not in self.tiers) if self.plan.is_quick else ()
            first = tuple(name for name in names if name not in beside and self._needs_warm_up(name))
            if first:
                steps.insert(0, Step("warm-up", first, (PROBE,), len(first), 4.0))
            planned(steps)
            async with trio.open_nursery() as nursery:
                for name in beside:
                    nursery.start_soon(self._warm_up, client, name)
                for each in steps:
                    step(each)
                    await self._run_step(client, each)

    def _needs_warm_up(self, name: str) -> bool:
        return not self.plan.is_quick or not self.models[name].get("loaded")

    async def _warm_up(self, client: httpx.AsyncClient, name: str) -> None:
        phase: Phase = "warm-up" if self.models[name].get("loaded") else "cold"
        await self._ask(client, name, PROBE, phase, 1)

    async def _run_step(self, client: httpx.AsyncClient, step: Step) -> None:
        waiting = deque((tier, question) for question in step.questions for tier in step.tiers)

        async def ask_in_order() -> None:
            while waiting:
                tier, question = waiting.popleft()
                if step.phase == "warm-up":
                    await self._warm_up(client, tier)
                else:
                    await self._ask(client, tier, question, step.phase, step.concurrency)

        async with trio.open_nursery() as nursery:
            for _ in range(step.concurrency):
                nursery.start_soon(ask_in_order)

    async def _ask(
        self, client: httpx.AsyncClient, tier: str, question: Question, phase: Phase, concurrency: int
    ) -> None:
        sample, reply = await ask(
            client,
            self.api,
            self._body(tier, question, phase),
            tier=tier,
            target=self.target(tier),
            phase=phase,
            question=question,
            concurrency=concurrency,
            run_began=self.began,
        )
        # In a thread: the check of code runs a process, and the times of other requests must not wait for it.
        judged = await trio.to_thread.run_sync(self._judge, sample, question, reply)
        self.samples.append(judged)
        self.record(judged)

    def _body(self, tier: str, question: Question, phase: Phase) -> dict[str, Any]:
        messages = [{"role": "user", "content": question.full_prompt(f"{self.nonce} {tier}")}]
        body: dict[str, Any] = {"model": tier, "messages": messages, "temperature": 0, "stream": True}
        body["stream_options"] = {"include_usage": True}
        body["max_tokens"] = self.plan.load_tokens if phase == "load" else self.plan.max_tokens
        if question.tools:
            body["tools"] = list(question.tools)
        return body

    def _judge(self, sample: Sample, question: Question, reply: Reply) -> Sample:
        """The sample with its verdict. "wrong model" needs evidence.

        That is the gateway's header, or a body that names *another* model of this gateway: engines use all kinds of
        names for themselves. An answer that began while its model was being loaded has no header yet.
        """
        if sample.verdict == "failed":
            return sample
        others = self.models.keys() - {sample.target, sample.tier}
        if sample.header_model not in {None, sample.target} or sample.body_model in others:
            by = sample.header_model if sample.header_model not in {None, sample.target} else sample.body_model
            return dataclasses.replace(sample, verdict="wrong model", reason=f"{by} answered")
        reason = question.check(reply)
        return sample if reason is None else dataclasses.replace(sample, verdict="wrong answer", reason=reason)


def _long_answer(number: int) -> Question:
    """A request whose answer is long enough for any `load_tokens`; each another, so that no cache answers it."""
    prompt = f"Write a story of 300 words about lighthouse number {number + 1}."
    return Question(f"story {number + 1}", "facts", prompt, "any text", lambda _: None)


def _default_tiers(models: dict[str, dict[str, Any]]) -> tuple[str, ...]:
    """Small and large of this project's names, else every alias, else the loaded models; at most four."""
    usual = tuple(name for name in ("helexa/small", "helexa/large") if name in models)
    aliases = tuple(name for name, entry in models.items() if entry.get("alias_of"))
    loaded = tuple(name for name, entry in models.items() if entry.get("loaded"))
    return (usual if len(usual) == 2 else aliases or loaded)[:4]
