"""Drains survive a restart, and what operators do to neurons and models is audited."""

import errno

import pytest
import structlog
import trio
from fakes.fleets import a_catalogue, a_fleet, a_model, a_profile, answers
from fakes.patience import until

from gateway.files import atomic_write
from gateway.fleet.loading.drain import Drains
from gateway.fleet.loading.manual import LoadResponse, UnloadResponse
from gateway.server import drain_store
from gateway.server.drain_store import DrainStore
from gateway.server.operator_actions import OperatorActions


class NoLoads:
    """A load scheduler that never finishes a load."""

    async def wait_until_routable(self, decision):
        await trio.sleep_forever()

    def loads_between(self, *_):
        return []


class ManualLoadsOfOne:
    def load(self, model, node):
        return LoadResponse(model, node or "a", "loading", None)

    def unload(self, model, node):
        return UnloadResponse(model, ("a",), ("b is busy",))


class Process:
    """What one gateway process has: a fleet of a and b, its drains, their file, and the audit lines."""

    def __init__(self, path, *names):
        self.fleet = a_fleet(*(names or ("a", "b")))
        for name in self.fleet.nodes:
            answers(self.fleet, name, *([a_model("m")] if name == "a" else []))
        self.catalogue = a_catalogue()
        self.drains = Drains(self.fleet, catalogue=self, scheduler=NoLoads(), load_s=10, min_residency_s=0)
        self.store = DrainStore(path, self.drains, nodes=lambda: self.fleet.nodes, move_ended=self.move_ended)
        self.lines, self.ended = [], []
        self.actions = OperatorActions(self.drains, ManualLoadsOfOne(), self.store, record=self.record)
        self.store.restore()

    @property
    def current(self):
        return self.catalogue

    def record(self, event, who, *, summary, outcome, **more):
        self.lines.append((event, who, summary, outcome))

    def move_ended(self, view, who):
        self.ended.append((view.node, view.state, who))

    def draining(self):
        return [name for name, node in self.fleet.nodes.items() if node.draining]


@pytest.fixture
def path(tmp_path):
    yield tmp_path / "state" / "drains.json"
    structlog.reset_defaults()


async def test_drain_survives_a_restart(path):
    """Before the first poll; and an undrain survives as well."""
    first = Process(path)
    await first.actions.drain("b", "anna", move=False)
    second = Process(path)
    assert second.draining() == ["b"]
    await second.actions.undrain("b", "bert")
    assert Process(path).draining() == []
    assert first.lines == [("drain", "anna", "drain b", "drained")]
    assert second.lines == [("undrain", "bert", "undrain b", "open")]


async def test_drain_of_a_removed_neuron_is_forgotten(path):
    await Process(path).actions.drain("b", "anna", move=False)
    process = Process(path, "a")
    assert process.draining() == []
    await process.actions.drain("a", "anna", move=False)
    assert Process(path).draining() == ["a"]


async def test_repeated_actions_are_recorded_as_such(path):
    process = Process(path)
    await process.actions.drain("b", "anna", move=False)
    await process.actions.drain("b", "anna", move=False)
    await process.actions.undrain("b", "anna")
    await process.actions.undrain("b", "anna")
    outcomes = [outcome for *_, outcome in process.lines]
    assert outcomes == ["drained", "drained already", "open", "not drained before"]


async def test_interrupted_move_is_resumed(path, nursery, monkeypatch):
    """Once the gateway has polled its neurons; then the move ends, which is reported with its author."""
    monkeypatch.setattr(drain_store, "SAVE_INTERVAL_S", 0.01)

    first = Process(path)
    first.catalogue = a_catalogue(a_profile("m"))
    await nursery.start(first.drains.run)
    await first.actions.drain("a", "anna", move=True)
    assert first.drains.view("a").state == "moving"

    second = Process(path)
    assert second.draining() == []
    await nursery.start(second.drains.run)
    await nursery.start(second.store.run)
    await until(lambda: second.ended)
    # In the second process no profile of the model allows the move, so the neuron stays in service.
    assert second.ended == [("a", "open", "anna")]
    await until(lambda: b"moving" not in path.read_bytes())


async def test_move_that_is_impossible_is_recorded_with_the_reason(path, nursery):
    process = Process(path)
    await nursery.start(process.drains.run)
    await process.actions.drain("a", "anna", move=True)
    [(_, _, summary, outcome)] = process.lines
    assert summary == "drain a and move its models"
    assert outcome.startswith("not drained: m: no other neuron can take it now")
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"{", b'{"drains": 7}'])
async def test_faulty_file_is_reported_and_replaced(path, content):
    """The gateway serves: a file of its own must not keep it from starting."""
    path.parent.mkdir()
    path.write_bytes(content)
    process = Process(path)
    assert "cannot be read" in process.store.error
    await process.actions.drain("b", "anna", move=False)
    assert process.store.error is None
    assert Process(path).draining() == ["b"]


async def test_drain_works_although_it_cannot_be_saved(path, monkeypatch):
    """The error stays until it can."""

    def refuse(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    process = Process(path)
    with monkeypatch.context() as patched:
        patched.setattr(atomic_write, "write", refuse)
        await process.actions.drain("b", "anna", move=False)
        assert process.store.error == "cannot be written: No space left on device"
    assert process.draining() == ["b"]
    await process.store.save()
    assert process.store.error is None


def test_loads_and_unloads_are_recorded(path):
    process = Process(path)
    process.actions.load("m", None, "anna")
    process.actions.unload("m", None, "anna")
    assert process.lines == [
        ("load", "anna", "load m on a", "loading"),
        ("unload", "anna", "unload m from a", "unloading; b is busy"),
    ]
