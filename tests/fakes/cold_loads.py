"""Loads in a world in memory."""

from __future__ import annotations

from fakes.world import a_sim_model

PROBE_S = 1.02  # the time in which `a_sim_model` answers
LOAD_S = 5.0

M = a_sim_model("lab/m")
N = a_sim_model("lab/n")


K = a_sim_model("lab/k")
