"""The spans of requests: their tree, times and attributes, and what is not in them. In memory, in own time."""

import pytest
import trio
from fakes.in_memory import SMALL, InMemoryGateway
from fakes.scripted import DONE, ROLE, chunked, delta, read_request, with_length
from fakes.world import a_sim, a_sim_model, a_world, profile_of

from catalogue.models import Alias, Hedge, Target
from gateway.config.settings import RetrySettings, Settings
from gateway.telemetry.tracing.request_tracer import RequestTracer
from neuron.simulated.fleet import neuron

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACED = (f"traceparent: 00-{TRACE}-{PARENT}-01", "tracestate: a=b")
SECRET = "a-secret-word"


class Spans:
    """The spans of the requests of one gateway, as they are sent to a collector."""

    def __init__(self, request_log):
        self.trees = []
        request_log.tracer = RequestTracer(1.0, lambda spans, context: self.trees.append((context, spans)))

    @property
    def tree(self):
        """Of the only request: (name, parent's name, error, duration in ms) of each span."""
        [(_, spans)] = self.trees
        names = {span.span_id: span.name for span in spans}
        return [
            (span.name, names.get(span.parent_id), span.error, round((span.ended_ns - span.began_ns) / 1e6))
            for span in spans
        ]

    @property
    def spans(self):
        [(_, spans)] = self.trees
        return spans

    def attributes(self, name):
        return next(dict(span.attributes) for span in self.spans if span.name == name)


def scripted(*script):
    """A neuron that sends each piece at its time."""

    async def serve(stream):
        serve.request = await read_request(stream)
        try:
            for at, what in script:
                await trio.sleep_until(at)
                await stream.send_all(what)
            await stream.receive_some(1)
        except trio.BrokenResourceError:
            pass
        await stream.aclose()

    return serve


def streaming(at):
    head, _, rest = chunked(ROLE, delta("x"), delta("y"), DONE).partition(b"\r\n\r\n")
    return scripted((at, head + b"\r\n\r\n" + rest))


async def test_stream_by_alias(autojump_clock, nursery):
    gateway = InMemoryGateway(nursery, {"a": neuron("a", [8192], [SMALL])})
    spans = Spans(gateway.request_log)
    body = {"model": "helexa/small", "messages": [{"role": "user", "content": SECRET}]}
    await gateway.client().ask(body, stream=True, headers=(*TRACED, f"authorization: Bearer {SECRET}"))
    await gateway.idle()

    root, attempt = "POST /v1/chat/completions", f"chat {SMALL}"
    assert [entry[:3] for entry in spans.tree] == [
        (root, None, None),
        (attempt, root, None),
        ("connect", attempt, None),
        ("first_byte", attempt, None),
        ("relay", attempt, None),
    ]
    durations = {name: took_ms for name, *_, took_ms in spans.tree}
    assert durations["first_byte"] > 2000  # the model's silence before its first token
    assert abs(durations[root] - sum(durations[phase] for phase in ("connect", "first_byte", "relay"))) <= 3  # rounded
    [(context, _)] = spans.trees
    assert (context.trace_id, spans.spans[0].parent_id) == (int(TRACE, 16), int(PARENT, 16))
    assert [span.kind for span in spans.spans] == ["server", "client", "internal", "internal", "internal"]
    attributes = spans.attributes(root)
    assert attributes["http.response.status_code"] == 200
    assert attributes["gen_ai.operation.name"] == "chat"
    assert attributes["gen_ai.request.model"] == attributes["cortex.alias"] == "helexa/small"
    assert attributes["gen_ai.response.model"] == SMALL
    assert attributes["gen_ai.usage.output_tokens"] > 0
    assert attributes["gen_ai.response.finish_reasons"] == ("stop",)
    assert 2 < attributes["gen_ai.server.time_to_first_token"] < 3
    assert spans.attributes(attempt)["cortex.node"] == "a"
    assert SECRET not in repr(spans.trees)


async def test_neuron_gets_the_attempts_span_as_parent(autojump_clock, nursery):
    peer = streaming(1)
    gateway = InMemoryGateway(nursery, {"a": peer})
    spans = Spans(gateway.request_log)
    await gateway.client().ask(stream=True, headers=TRACED)
    await gateway.idle()

    attempt = next(span for span in spans.spans if span.kind == "client")
    assert f"traceparent: 00-{TRACE}-{attempt.span_id:016x}-01".encode() in peer.request
    assert PARENT.encode() not in peer.request
    assert b"tracestate: a=b" in peer.request


async def test_hedge_that_loses_is_cancelled_beside_the_winner(autojump_clock, nursery):
    alias = Alias("helexa/small", (Target(SMALL),), hedge=Hedge(1.0, 100.0))
    gateway = InMemoryGateway(nursery, {"a": streaming(10), "b": streaming(1.5)}, alias=alias)
    spans = Spans(gateway.request_log)
    await gateway.client().ask(stream=True)
    await gateway.idle()

    attempts = [span for span in spans.spans if span.kind == "client"]
    assert [(span.attributes["cortex.node"], span.error) for span in attempts] == [("a", "cancelled"), ("b", None)]
    assert [span.attributes["cortex.attempt.hedge"] for span in attempts] == [False, True]
    assert attempts[0].began_ns < attempts[1].began_ns < attempts[0].ended_ns
    relay = next(span for span in spans.spans if span.name == "relay")
    assert relay.parent_id == attempts[1].span_id
    assert {span.span_id for span in spans.spans} >= {span.parent_id for span in spans.spans[1:]}


async def test_failed_attempt_and_its_retry(autojump_clock, nursery):
    broken = scripted((0, with_length(b'{"error":"no"}', status="500 Internal Server Error")))
    settings = Settings(retries=RetrySettings(1))
    gateway = InMemoryGateway(nursery, {"a": broken, "b": streaming(1)}, settings)
    spans = Spans(gateway.request_log)
    await gateway.client().ask(stream=True)
    await gateway.idle()

    attempts = [span for span in spans.spans if span.kind == "client"]
    assert [span.attributes["cortex.attempt.result"] for span in attempts] == ["failed", "answered"]
    assert attempts[0].error is not None
    assert spans.attributes("POST /v1/chat/completions")["cortex.retries"] == 1


async def test_load_that_a_request_waits_for(autojump_clock, nursery):
    model = a_sim_model("m", load_s=7)
    async with a_world(a_sim("a", model), profiles=[profile_of(model)]) as world:
        spans = Spans(world.request_log)
        await world.ask("m", stream=True)

        load = next(entry for entry in spans.tree if entry[0] == "load")
        assert load[1] == "POST /v1/chat/completions"
        assert 7000 <= load[3] < 8000


async def test_client_that_leaves(autojump_clock, nursery):
    gateway = InMemoryGateway(nursery, {"a": streaming(100)})
    spans = Spans(gateway.request_log)
    client = gateway.client()
    await client.send(stream=True)
    await trio.sleep(1)
    await client.leave()
    await gateway.idle()

    root, attempt, *_ = spans.spans
    assert (root.error, attempt.error) == ("client_disconnected", "cancelled")


async def test_unknown_name_of_a_client_is_not_an_attribute(autojump_clock, nursery):
    gateway = InMemoryGateway(nursery, {"a": neuron("a", [8192], [SMALL])})
    spans = Spans(gateway.request_log)
    await gateway.client().ask(model=SECRET)
    await gateway.idle()

    assert spans.spans[0].error == "model_not_found"
    assert SECRET not in repr(spans.trees)


@pytest.mark.parametrize("headers", [(), (f"traceparent: 00-{TRACE}-{PARENT}-00",)])
async def test_request_that_is_not_sampled_passes_the_clients_header(autojump_clock, nursery, headers):
    peer = streaming(1)
    gateway = InMemoryGateway(nursery, {"a": peer})
    trees = []
    gateway.request_log.tracer = RequestTracer(0.0, lambda *tree: trees.append(tree))
    await gateway.client().ask(stream=True, headers=headers)
    await gateway.idle()

    assert trees == []
    assert (b"traceparent" in peer.request) == bool(headers)
    assert all(line.encode() in peer.request for line in headers)
