"""Sleep and wake of simulated models, as vLLM has them: level 1 keeps the weights in host memory, level 2 drops them.

A model that may sleep is put to sleep when it is unloaded, as `cortex neuron serve` does it; a load wakes it.
"""

from __future__ import annotations

from neuron.simulated.state import NeuronState, Residency, Resident, SimRefusal

__all__ = ["begin_wake", "fall_asleep", "may_sleep_now", "put_to_sleep", "sleeper_named"]

LEVELS = frozenset({1, 2})


def may_sleep_now(state: NeuronState, resident: Resident) -> bool:
    """Whether an unload puts the model to sleep: it may sleep, is idle, and the host has memory for its weights."""
    level, is_busy = resident.model.sleep, resident.places.in_flight or resident.places.queue_depth
    if not level or is_busy or resident.residency is not Residency.LOADED:
        return False
    return _fits_into_host_memory(state, resident, level)


def _fits_into_host_memory(state: NeuronState, resident: Resident, level: int) -> bool:
    kept_mb = sum(other.host_mb for other in state.residents.values())
    return level != 1 or kept_mb + resident.model.vram_mb <= state.host_memory_mb


def put_to_sleep(state: NeuronState, name: str, level: int | None) -> None:
    """Give back most of an idle model's VRAM, at once.

    Raises:
        SimRefusal: 404 not loaded, 409 in use, 400 it may not sleep.
    """
    resident = sleeper_named(state, name)
    if resident.residency is Residency.ASLEEP:
        return
    level = level or resident.model.sleep
    if not resident.model.sleep or level not in LEVELS:
        raise SimRefusal(400, f"model '{resident.model.id}' may not sleep at level {level}", code="invalid")
    if resident.residency is not Residency.LOADED:
        raise SimRefusal(400, f"model '{resident.model.id}' is {resident.residency.value}, not loaded", code="invalid")
    if busy := resident.places.in_flight + resident.places.queue_depth:
        raise SimRefusal(409, f"model '{resident.model.id}' has {busy} requests in flight", code="in_use")
    if not _fits_into_host_memory(state, resident, level):
        raise SimRefusal(400, f"the host has no memory for the weights of '{resident.model.id}'", code="does_not_fit")
    fall_asleep(state, resident, level, "an operator put it to sleep")


def fall_asleep(state: NeuronState, resident: Resident, level: int, reason: str) -> None:
    """Put a loaded model to sleep. The caller has checked that it may."""
    resident.residency, resident.asleep_level, resident.reason = Residency.ASLEEP, level, reason
    resident.host_mb = resident.model.vram_mb if level == 1 else 0
    resident.prompts.clear()  # the key-value cache is gone at either level
    state.counters["sleeps"] += 1
    state.log_load("sleep", resident.model.id, "asleep", resident.devices)


def sleeper_named(state: NeuronState, name: str) -> Resident:
    """The model under this name, if it is on the neuron. Raises SimRefusal: 404."""
    resident = state.residents.get(name) or state.residents.get(name.partition(":")[2])
    if resident is None or resident.residency is Residency.UNLOADED:
        raise SimRefusal(404, f"model '{name}' not loaded", code="not_found")
    return resident


def begin_wake(state: NeuronState, resident: Resident) -> None:
    """Take the VRAM of a sleeper again; it is `loading` until `end_load`. Raises SimRefusal: 400, no VRAM for it."""
    for index, share_mb in resident.vram_mb.items():
        lacking_mb = share_mb - resident.held_mb(index) - state.vram_free_mb(index)
        if lacking_mb > 0:
            text = f"not enough VRAM to wake '{resident.model.id}' on device {index}: {lacking_mb} MB are missing"
            state.log_load("wake", resident.model.id, text)
            raise SimRefusal(400, text, code="does_not_fit")
    resident.residency, resident.reason = Residency.LOADING, None
    state.log_load("wake", resident.model.id, "begun", resident.devices)
