"""Random histories of a fleet: its index and its counts always match a naive computation."""

from fakes.fleets import a_fleet, a_model, assert_idle, where
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.fleet.reports import NodeReport

NODES = st.sampled_from(["a", "b", "c"])
MODELS = st.sampled_from(["m", "n"])
STATUSES = st.sampled_from(["loaded", "reloading", "unloaded", "loading", "poisoned"])


class AnyHistory(RuleBasedStateMachine):
    """Applies random events and checks the index and the counts after each."""

    def __init__(self):
        super().__init__()
        self.fleet = a_fleet("a", "b", "c")
        self.out = []
        self.marks = []
        self.observed = {}  # the replicas as of the last notification
        self.fleet.replica_observers.append(
            lambda model_id: self.observed.update({model_id: where(self.fleet, model_id)})
        )
        self.returned_minus_taken = 0
        self.fleet.return_observers.append(self.note_return)

    def note_return(self, _):
        self.returned_minus_taken += 1

    @rule(node=NODES)
    def begin_poll(self, node):
        self.marks.append((node, self.fleet.mark(node)))

    @precondition(lambda self: self.marks)
    @rule(data=st.data(), models=st.dictionaries(MODELS, STATUSES), busy=st.integers(0, 5))
    def end_poll(self, data, models, busy):
        node, mark = self.marks.pop(data.draw(st.integers(0, len(self.marks) - 1)))
        reports = tuple(a_model(model_id, status, in_flight=busy) for model_id, status in models.items())
        self.fleet.answered(node, NodeReport(reports), since=mark)

    @rule(node=NODES)
    def miss(self, node):
        self.fleet.missed(node)

    @rule(node=NODES, model_id=MODELS, what=st.sampled_from(["dropped", "loading", "unloading", "unchanged"]))
    def change(self, node, model_id, what):
        getattr(self.fleet, what)(node, model_id)

    @rule(node=NODES, model_id=MODELS)
    def finish_load(self, node, model_id):
        self.fleet.loaded(node, a_model(model_id))

    @rule(node=NODES, draining=st.booleans())
    def drain(self, node, draining):
        self.fleet.drain(node, draining=draining)

    @rule(node=NODES, model_id=MODELS)
    def take(self, node, model_id):
        lease = self.fleet.lease(node, model_id)
        lease.__enter__()
        self.out.append((node, model_id, lease))
        self.returned_minus_taken -= 1

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give_back(self, data):
        self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))[2].__exit__(None, None, None)

    @invariant()
    def index_matches_a_naive_computation(self):
        for model_id in ("m", "n"):
            naive = [
                node.name
                for node in self.fleet.nodes.values()
                if node.healthy and not node.draining and model_id in node.models and node.models[model_id].routable
            ]
            assert where(self.fleet, model_id) == naive
            assert self.observed.get(model_id, []) == naive

    @invariant()
    def leases_match_those_taken(self):
        assert self.fleet.leases == len(self.out) == -self.returned_minus_taken
        for node in self.fleet.nodes.values():
            for model_id in ("m", "n"):
                entry = node.models.get(model_id)
                count = sum(out[:2] == (node.name, model_id) for out in self.out)
                assert (entry.leases if entry else 0) == count
                assert entry is None or (entry.other_requests >= 0 and entry.load >= count)

    @invariant()
    def unused_entries_are_dropped(self):
        for node in self.fleet.nodes.values():
            assert all(entry.leases or entry.status is not None for entry in node.models.values())

    def teardown(self):
        for _, _, lease in self.out:
            lease.__exit__(None, None, None)
        assert_idle(self.fleet)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
