"""What the samples say: correctness, times, speeds, costs. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from gateway.cli.bench.chat_client import Sample
from gateway.cli.bench.questions import KINDS, Kind

__all__ = [
    "REFERENCE_LARGE_S",
    "REFERENCE_RATIO",
    "REFERENCE_SMALL_S",
    "ColdFigures",
    "Figures",
    "LoadFigures",
    "Spread",
    "TierFigures",
    "evaluate",
]

# The probe, whole answer, warm, on the machines on which this project began. On others only the ratio is comparable.
REFERENCE_SMALL_S, REFERENCE_LARGE_S = 2.5, 6.7
REFERENCE_RATIO = REFERENCE_LARGE_S / REFERENCE_SMALL_S
TOKENS_FOR_A_SPEED = 8  # with fewer, tokens/s is the jitter of one or two reads
USD_PER = 1_000_000  # prices in models.toml are per 10^6 tokens


@dataclass(frozen=True, slots=True)
class Spread:
    """Median and 95th percentile by nearest rank: a value that was measured (of fewer than 20, the largest)."""

    median: float
    p95: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None without values."""
        ordered = sorted(value for value in values if value is not None)
        if not ordered:
            return None
        return cls(statistics.median(ordered), ordered[math.ceil(0.95 * len(ordered)) - 1])


@dataclass(frozen=True, slots=True)
class TierFigures:
    """One tier. `correct` and `asked` by kind. Seconds; tokens/s are those of one answer; USD for 1,000 questions."""

    tier: str
    model: str
    nodes: tuple[str, ...]
    probe: Spread | None
    correct: Mapping[Kind, int]
    asked: Mapping[Kind, int]
    failed: int
    total: Spread | None
    first_token: Spread | None
    tokens_per_s: float | None
    tokens_out: float | None
    usd_per_1000: float | None


@dataclass(frozen=True, slots=True)
class LoadFigures:
    """One tier with so many requests at a time. `all_tokens_per_s` is that of all answers together."""

    tier: str
    concurrency: int
    requests: int
    failed: int
    first_token: Spread | None
    total: Spread | None
    tokens_per_s: float | None
    all_tokens_per_s: float | None


@dataclass(frozen=True, slots=True)
class ColdFigures:
    """One request to a model that was not loaded. Seconds."""

    model: str
    node: str | None
    first_token_s: float | None
    total_s: float
    reason: str | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Everything. `ratio` is that of the probe's median times of the last tier to the first."""

    tiers: tuple[TierFigures, ...]
    loads: tuple[LoadFigures, ...]
    cold: tuple[ColdFigures, ...]
    ratio: float | None
    simulated: bool

    def as_json(self) -> dict[str, Any]:
        """For programs. Correctness of simulated neurons is null: it is no property of a model."""
        body = asdict(self) | {
            "reference": {
                "small_s": REFERENCE_SMALL_S,
                "large_s": REFERENCE_LARGE_S,
                "ratio": round(REFERENCE_RATIO, 3),
            }
        }
        if self.simulated:
            for tier in body["tiers"]:
                tier["correct"] = None
        return body


def evaluate(samples: Sequence[Sample], tiers: Sequence[str], models: Mapping[str, Mapping[str, Any]]) -> Figures:
    """The figures of these samples. `tiers` from small to large; `models` are the entries of `/v1/models`."""
    by_tier = tuple(_tier(tier, [sample for sample in samples if sample.tier == tier], models) for tier in tiers)
    loads = [sample for sample in samples if sample.phase == "load"]
    keys = dict.fromkeys((sample.tier, sample.concurrency) for sample in loads)
    probes = [tier.probe.median for tier in by_tier if tier.probe is not None]
    return Figures(
        tiers=by_tier,
        loads=tuple(
            _load([sample for sample in loads if (sample.tier, sample.concurrency) == key])
            for key in sorted(keys, key=lambda key: (tiers.index(key[0]), key[1]))
        ),
        cold=tuple(
            ColdFigures(sample.target, sample.node, sample.first_token_s, sample.total_s, sample.reason)
            for sample in samples
            if sample.phase == "cold"
        ),
        ratio=probes[-1] / probes[0] if len(probes) == len(tiers) > 1 else None,
        simulated=any(sample.simulated for sample in samples),
    )


def _tier(tier: str, samples: Sequence[Sample], models: Mapping[str, Mapping[str, Any]]) -> TierFigures:
    asked = [sample for sample in samples if sample.phase == "question"]
    answered = [sample for sample in asked if sample.verdict != "failed"]
    probes = [sample for sample in samples if sample.phase == "probe" and sample.verdict != "failed"]
    target = next((sample.target for sample in samples), tier)
    return TierFigures(
        tier=tier,
        model=target,
        nodes=tuple(sorted({sample.node for sample in samples if sample.node is not None})),
        probe=Spread.of(sample.total_s for sample in probes),
        correct={kind: sum(each.kind == kind and each.verdict == "correct" for each in asked) for kind in KINDS},
        asked={kind: sum(each.kind == kind for each in asked) for kind in KINDS},
        failed=len(asked) - len(answered),
        total=Spread.of(sample.total_s for sample in answered),
        first_token=Spread.of(sample.first_token_s for sample in answered),
        tokens_per_s=_median(map(_tokens_per_s, answered)),
        tokens_out=_median(sample.tokens_out for sample in answered),
        usd_per_1000=_usd_per_1000(answered, (models.get(target) or models.get(tier) or {}).get("cost")),
    )


def _load(samples: Sequence[Sample]) -> LoadFigures:
    answered = [sample for sample in samples if sample.verdict != "failed"]
    tokens = sum(sample.tokens_out or 0 for sample in answered)
    began = min((sample.began_s for sample in samples), default=0.0)
    took_s = max((sample.began_s + sample.total_s for sample in samples), default=0.0) - began
    return LoadFigures(
        tier=samples[0].tier,
        concurrency=samples[0].concurrency,
        requests=len(samples),
        failed=len(samples) - len(answered),
        first_token=Spread.of(sample.first_token_s for sample in answered),
        total=Spread.of(sample.total_s for sample in answered),
        tokens_per_s=_median(map(_tokens_per_s, answered)),
        all_tokens_per_s=tokens / took_s if took_s and tokens else None,
    )


def _tokens_per_s(sample: Sample) -> float | None:
    """Decode speed: the tokens after the first over their time, so both sides count the same tokens."""
    if not sample.decode_s or sample.tokens_out is None or sample.tokens_out < TOKENS_FOR_A_SPEED:
        return None
    return (sample.tokens_out - 1) / sample.decode_s


def _usd_per_1000(samples: Sequence[Sample], cost: Mapping[str, float] | None) -> float | None:
    """What 1,000 questions like these cost; None without prices or without usage."""
    if not cost or "input" not in cost or "output" not in cost or not samples:
        return None
    known = [sample for sample in samples if sample.tokens_in is not None and sample.tokens_out is not None]
    if not known:
        return None
    usd = sum((sample.tokens_in or 0) * cost["input"] + (sample.tokens_out or 0) * cost["output"] for sample in known)
    return usd / USD_PER / len(known) * 1000


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
