"""Reading a request: what is read of it, what is refused unread, and which headers are passed on."""

import itertools

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.dialects.json_splice import locate
from gateway.errors import BodyTooLarge, MethodNotAllowed, UpgradeRequired
from gateway.http.pool import header_lines
from gateway.http.server_exchange import ServerExchange
from gateway.proxy import header_policy, total_deadline
from gateway.proxy.body.memory import BodyMemory, BodyReservation
from gateway.proxy.header_policy import named_by_connection
from gateway.proxy.request import (
    InferenceRequest,
    RequestHead,
    head_of,
    outgoing_headers,
    read_request,
    request_id_of,
)
from gateway.proxy.response.client_response import ClientGone

BODY = b'{"model":"m","stream":true}'


def a_room():
    return BodyReservation(BodyMemory(10_000))


def a_scope(*headers, method="POST", path=b"/v1/chat/completions", query=b""):
    return {"method": method, "path": path.decode(), "raw_path": path, "query_string": query, "headers": list(headers)}


def receiving(*messages):
    """An ASGI `receive` that returns these messages in turn; reading beyond them is an error."""
    left = list(messages)

    async def receive():
        return left.pop(0)

    return receive


def body_of(*pieces):
    """The messages of a body in these pieces."""
    return [
        {"type": "http.request", "body": piece, "more_body": count < len(pieces)}
        for count, piece in enumerate(pieces, 1)
    ]


@given(st.lists(st.integers(0, len(BODY)), max_size=5))
def test_body_is_joined_whatever_its_pieces(cuts):
    """Empty pieces, too."""
    edges = [0, *sorted(cuts), len(BODY)]
    pieces = [BODY[start:end] for start, end in itertools.pairwise(edges)]
    request = trio.run(read_request, a_scope(query=b"a=%2F"), receiving(*body_of(*pieces)), "id", 1000, a_room())

    assert (request.body, request.model.name, request.stream) == (BODY, "m", True)
    assert request.path == b"/v1/chat/completions?a=%2F"


async def test_declared_length_beyond_the_limit_is_refused_unread():
    """No piece of the body is read."""
    with pytest.raises(BodyTooLarge, match=r"larger than the 0.5 MiB"):
        await read_request(a_scope((b"content-length", b"524289")), receiving(), "id", 524_288, a_room())


async def test_undeclared_length_is_refused_at_the_first_piece_beyond_the_limit():
    """No later piece is read."""
    with pytest.raises(BodyTooLarge):
        await read_request(a_scope(), receiving(*body_of(b"x" * 600, b"x" * 600, b"never")[:2]), "id", 1000, a_room())


async def test_disconnect_while_reading_raises_client_gone():
    """There is no one to send an error to."""
    with pytest.raises(ClientGone):
        await read_request(
            a_scope(),
            receiving(*body_of(b"{", b"}")[:1], {"type": "http.disconnect"}),
            "id",
            1000,
            a_room(),
        )


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE"])
async def test_only_post_is_allowed(method):
    """Checked before the body is read."""
    with pytest.raises(MethodNotAllowed, match="use POST"):
        await read_request(a_scope(method=method), receiving(), "id", 1000, a_room())


@pytest.mark.parametrize("value", [b"websocket", b"WebSocket"])
async def test_offered_websocket_is_a_426(value):
    """Codex then uses HTTP at once; a 405 it would try again."""
    scope = a_scope((b"upgrade", value), (b"connection", b"Upgrade"), method="GET", path=b"/v1/responses")
    with pytest.raises(UpgradeRequired, match="send the request with POST") as raised:
        await read_request(scope, receiving(), "id", 1000, a_room())

    assert (raised.value.status, raised.value.headers) == (426, [(b"upgrade", b"HTTP/1.1")])


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"abc-1.2:3_4", True),
        (b"x" * 128, True),
        (b"x" * 129, False),
        (b"", False),
        (b"a b", False),
        (b"a\xff", False),
        (b"abc\n", False),
        (b'"', False),
    ],
)
def test_request_id_is_kept_if_it_is_valid(value, kept):
    """It goes into logs and headers."""
    made = request_id_of([(b"x-request-id", value)])

    assert (made.encode() == value) is kept
    assert made


def test_generated_request_ids_differ():
    """They join the lines of different logs."""
    assert len({request_id_of([]) for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([], set()),
        ([b"close"], {b"close"}),
        ([b"X-A, x-b ,,", b"TE"], {b"x-a", b"x-b", b"", b"te"}),
    ],
)
def test_connection_names_headers_in_all_its_lines(values, names):
    """In any case, with any spaces."""
    assert named_by_connection([(b"connection", value) for value in values]) == names


async def test_outgoing_headers_keep_order_and_repetition():
    """Of those that pass; the content type is JSON's, whatever the client says."""
    headers = [(b"accept", b"1"), (b"authorization", b"s"), (b"accept", b"2"), (b"user-agent", b"x")]
    request = await read_request(a_scope(*headers), receiving(*body_of(BODY)), "my-id", 1000, a_room())

    assert outgoing_headers(request, request.path, ()).splitlines() == [
        b"accept: 1",
        b"accept: 2",
        b"user-agent: x",
        b"content-type: application/json",
        b"accept-encoding: identity",
        b"x-request-id: my-id",
    ]


HEADS = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"accept",
                b"content-type",
                b"content-length",
                b"content-encoding",
                b"connection",
                b"x-request-id",
                b"anthropic-beta",
                b"user-agent",
                b"x-cortex-timing",
                b"x-request-deadline-ms",
                b"x-more",
            ]
        ),
        st.sampled_from([b"1", b"application/json", b"multipart/form-data", b"gzip", b"7", b"user-agent, close"]),
    ),
    max_size=6,
)


@given(headers=HEADS, own_dialect=st.booleans(), also=st.sampled_from([(), ("x-more",)]))
def test_head_that_is_read_once_says_the_same_as_the_headers(headers, own_dialect, also):
    """For the first request with it, and for the next one: also of another dialect, or with another id."""
    head = RequestHead(a_scope(*headers))

    assert head.names_id or len(request_id_of(headers)) == 32
    assert head.names_deadline or total_deadline.of_client(headers) is None
    assert head.wants_timing == ((b"x-cortex-timing", b"1") in headers)
    for in_clients_dialect, request_id in ((own_dialect, "a"), (own_dialect, "b"), (not own_dialect, "c")):
        path = b"/v1/chat/completions" if in_clients_dialect else b"/v1/other"
        request = InferenceRequest(head.path, head.headers, BODY, locate(BODY), request_id, head=head)
        assert outgoing_headers(request, path, also) == header_lines(
            header_policy.for_neuron(
                headers, request_id, form_type=None, in_clients_dialect=in_clients_dialect, also=also
            )
        )


@given(headers=HEADS, method=st.sampled_from(["POST", "PUT"]))
def test_plain_head_is_one_that_read_request_accepts(headers, method):
    """And then the body is read as it is, whichever way."""
    head = RequestHead(a_scope(*headers, method=method))
    if head.is_plain:
        scope = a_scope(*(header for header in headers if header[0] != b"content-length"), method=method)
        read = trio.run(read_request, scope, receiving(*body_of(BODY)), "id", 1000, a_room())
        assert (read.path, read.body) == (head.path, BODY)


def test_connection_keeps_the_head_of_its_requests():
    """The server clears `derived` once a head differs."""
    exchange = ServerExchange()
    head = head_of(a_scope((b"content-type", b"application/json")), exchange)

    assert head_of(a_scope((b"content-type", b"application/json")), exchange) is head
    assert head.is_plain
    exchange.derived = {}
    assert not head_of(a_scope(), exchange).is_plain
