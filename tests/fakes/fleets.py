"""Fleets and catalogues for tests without polls, in one line each."""

from __future__ import annotations

from types import MappingProxyType

from catalogue.models import Alias, Catalogue, ModelProfile
from gateway.config.settings import NeuronSettings
from gateway.fleet.reports import DeviceReport, ModelReport, NodeReport
from gateway.fleet.state import Fleet


class Clock:
    """A clock that moves only when a test sets `now`."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def a_fleet(*names, misses=3, clock=None):
    """A fleet of neurons that have not answered yet."""
    neurons = [NeuronSettings(name, f"http://{name}:13131") for name in names]
    return Fleet(neurons, misses=misses, clock=clock or Clock())


def a_model(model_id, status="loaded", **more):
    """A model report; requests can be routed to it unless `more` changes that."""
    return ModelReport(model_id, status, **{"harness": "vllm", "devices": (0,), "url": "http://x:8080"} | more)


def a_gpu(index=0, total_mb=24_000, free_mb=20_000):
    """A device with a reading."""
    used_mb = None if free_mb is None else total_mb - free_mb
    return DeviceReport(index, "GPU", total_mb, "8.9", vram_used_mb=used_mb, vram_free_mb=free_mb)


A_GPU = (a_gpu(),)


def answers(fleet, node, *models, devices=A_GPU, **more):
    """One good poll of a node."""
    fleet.answered(node, NodeReport(tuple(models), devices, **more))


def assert_idle(fleet):
    """Raise AssertionError, with the models, unless every lease has ended."""
    leased = [model for node in fleet.nodes.values() for model in node.models.values() if model.leases]
    if leased or fleet.leases:
        raise AssertionError(f"{fleet.leases} leases have not ended: {leased}")


def where(fleet, model_id):
    """The names of the neurons to which a request for the model can go now."""
    return [replica.node.name for replica in fleet.replicas(model_id)]


def a_catalogue(*profiles, aliases=None, generation=1):
    """A snapshot of these profiles and aliases."""
    return Catalogue(
        generation=generation,
        models=MappingProxyType({profile.id: profile for profile in profiles}),
        aliases=MappingProxyType({name: Alias.plain(name, target) for name, target in (aliases or {}).items()}),
    )


def a_profile(model_id, **more):
    """A profile without any requirement."""
    return ModelProfile(model_id, "vllm", **more)
