"""Aliases that move to another model, in a world in memory."""

from __future__ import annotations

import dataclasses

import trio
from fakes.fleets import a_catalogue
from fakes.world import a_sim, a_sim_model, profile_of

from catalogue.models import Alias, Target

OLD, NEW, THIRD = a_sim_model("lab/old"), a_sim_model("lab/new"), a_sim_model("lab/third")
LOAD_S, PROBE_S = 5.0, 1.01  # as these models are made: a second of silence, and one token


def two_hosts(*, loaded_too=()):
    """Each host has memory for one of the models; the old one is loaded on the first."""
    return a_sim("a", OLD, NEW, THIRD, loaded=(OLD.id,)), a_sim("b", OLD, NEW, THIRD, loaded=loaded_too)


def pointing_at(model, **more):
    """A catalogue of all three models, in which the alias `x` has this target."""
    alias = Alias("x", (Target(model.id),), **more)
    return dataclasses.replace(a_catalogue(*map(profile_of, (OLD, NEW, THIRD))), aliases={"x": alias})


def in_force(world):
    return world.catalogue_store.current.aliases["x"].target


async def moved(world):
    """Wait until the alias has another target; returns the time."""
    before = in_force(world)
    while in_force(world) == before:
        await trio.sleep(0.01)
    return trio.current_time()


def samples(world, name):
    lines = world.metrics.expose().decode().splitlines()
    return {line for line in lines if line.startswith(name) and "bucket" not in line and "_sum" not in line}
