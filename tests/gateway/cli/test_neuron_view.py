"""What `cortex neuron status` prints of a GPU host."""

from __future__ import annotations

from rich.console import Console

from gateway.cli.views import neuron_view

DEVICE = {
    "index": 0,
    "vram_used_mb": 9_000,
    "vram_free_mb": 1_000,
    "utilization_pct": 42,
    "temp_c": 61,
    "power_w": 250.4,
}


def printed(device: dict[str, object], *models: dict[str, object]) -> str:
    state = {
        "discovery": {"devices": [{"index": 0, "name": "H200"}]},
        "health": {"devices": [device], "models": []},
        "models": list(models),
    }
    console = Console(width=200)
    with console.capture() as capture:
        console.print(neuron_view.render(state))
    return capture.get()


def test_watts_and_other_users_of_the_devices_are_shown() -> None:
    foreign = [{"pid": 4711, "name": "python3", "memory_mb": 5_000}]

    shown = printed(DEVICE | {"foreign": foreign})

    assert "250 W" in shown
    assert "other users of the devices" in shown
    assert all(text in shown for text in ("4711", "python3", "5000"))
    assert "other users" not in printed(DEVICE)


def test_reason_and_progress_are_shown() -> None:
    entry = {"id": "m", "harness": "vllm", "devices": [0], "vram_used_mb": 500}

    assert "asleep: it was idle for 300 s" in printed(
        DEVICE, entry | {"status": "asleep", "reason": "it was idle for 300 s"}
    )
    assert "loading 40%" in printed(DEVICE, entry | {"status": "loading", "progress": 0.4})
