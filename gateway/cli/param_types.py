"""Types of command line values that Click does not have."""

from __future__ import annotations

import re
from itertools import pairwise
from math import isfinite
from typing import Any

import click

from gateway.aliases.rollout_guards import DEFAULT_TOLERANCES

__all__ = ["Duration", "GuardParam", "Percent", "Steps"]

_UNITS_S = {None: 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class Duration(click.ParamType[float]):
    """A duration such as `30s`, `10m` or `2h`, in seconds."""

    name = "duration"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Seconds."""
        if isinstance(value, int | float):
            return float(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|m|h|d)?", str(value).strip())
        if match is None:
            self.fail(f"{value!r} is not a duration; write for example 30s, 10m or 2h", param, ctx)
        seconds = float(match[1]) * _UNITS_S[match[2]]
        if not isfinite(seconds):
            self.fail("the duration is too long", param, ctx)
        return seconds


class Percent(click.FloatRange):
    """A percentage; unlike FloatRange it refuses `nan`."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """0 to 100."""
        percent = float(super().convert(value, param, ctx))
        if not isfinite(percent):
            self.fail(f"{value!r} is not a percentage", param, ctx)
        return percent


class Steps(click.ParamType[tuple[float, ...]]):
    """Rising percentages, such as `5,25,50,100`."""

    name = "percent,…"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, ...]:
        """Each above 0 and at most 100."""
        if isinstance(value, tuple):
            return value
        try:
            steps = tuple(float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not a list of percentages; write for example 5,25,50,100", param, ctx)
        if not all(0 < step <= 100 for step in steps) or any(a >= b for a, b in pairwise(steps)):
            self.fail("steps must rise, and be above 0 and at most 100", param, ctx)
        return steps


class GuardParam(click.ParamType[tuple[str, float | None]]):
    """A rollout guard with an optional tolerance, such as `errors=0.05`; or `none`."""

    name = "guard[=tolerance]"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, float | None]:
        """The guard's name, and its tolerance or None."""
        name, _, text = str(value).partition("=")
        if name != "none" and name not in DEFAULT_TOLERANCES:
            self.fail(
                f"there is no guard {name!r}; the guards are {', '.join(DEFAULT_TOLERANCES)}, or none", param, ctx
            )
        try:
            tolerance = float(text) if text else None
        except ValueError:
            self.fail(f"the tolerance {text!r} is not a number", param, ctx)
        if tolerance is not None and name == "none":
            self.fail("`none` takes no tolerance", param, ctx)
        if tolerance is not None and not (isfinite(tolerance) and tolerance >= 0):
            self.fail("a tolerance is a fraction, 0 or more", param, ctx)
        return name, tolerance
