"""Trace contexts of clients, as W3C Trace Context defines them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.telemetry.tracing.trace_context import TraceContext

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def begin(traceparent, sample=1.0):
    headers = [(b"host", b"x")] + ([] if traceparent is None else [(b"traceparent", traceparent.encode())])
    return TraceContext.begin(headers, sample)


def test_client_that_is_traced_is_the_parent():
    context = begin(f"00-{TRACE}-{PARENT}-01", sample=0)
    assert (context.trace_id, context.parent_id) == (int(TRACE, 16), int(PARENT, 16))
    assert context.span_id not in {0, context.parent_id}


def test_clients_decision_not_to_sample_counts():
    assert begin(f"00-{TRACE}-{PARENT}-00", sample=1.0) is None


def test_version_of_the_future_is_read_as_far_as_it_is_known():
    assert begin(f"cc-{TRACE}-{PARENT}-01-what-comes-later").trace_id == int(TRACE, 16)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        f"00-{TRACE}-{PARENT}",
        f"00-{TRACE}-{PARENT}-01-more",
        f"ff-{TRACE}-{PARENT}-01",
        f"00-{'0' * 32}-{PARENT}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{PARENT}-01",
        f"00-{TRACE}-{PARENT}-01\n",
        "x" * 5000,
    ],
)
def test_invalid_header_begins_a_new_trace(header):
    context = begin(header)
    assert context.parent_id == 0
    assert context.trace_id not in {0, int(TRACE, 16)}


@given(st.binary(max_size=80))
def test_any_header_is_read_without_an_error(value):
    assert TraceContext.begin([(b"traceparent", value)], 1.0) is not None or value.endswith(b"-00")


def test_share_of_requests_is_sampled():
    assert begin(None, sample=0.0) is None
    sampled = sum(begin(None, sample=0.5) is not None for _ in range(2000))
    assert 800 < sampled < 1200


def test_neuron_gets_the_span_that_asks_it():
    context = begin(f"00-{TRACE}-{PARENT}-01")
    lines = b"traceparent: old\r\ntracestate: a=b\r\ntraceparent: older\r\nx: traceparent: y\r\n"
    assert context.headers_for(0x1F, lines) == (
        f"tracestate: a=b\r\nx: traceparent: y\r\ntraceparent: 00-{TRACE}-000000000000001f-01\r\n".encode()
    )
