"""A head that a client repeats is copied; the requests are the same as those of a parser that has never seen it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import GatewayError
from gateway.http.request_parser import UNLIKE_HEADS, LatestHead, RequestParser
from gateway.http.server_exchange import ServerExchange

LIMIT = 1000
HEAD = b"POST /v1/x?y HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX-Name: Value\r\n\r\n"


def post(body=b"hello", head=HEAD):
    return head % len(body) + body


def seen(request):
    """What an application sees of a request, and the server."""
    if not isinstance(request, ServerExchange):
        return request
    names = ("method", "target", "version", "headers", "body_complete", "reusable", "expects_continue")
    return b"".join(request.body), *(getattr(request, name) for name in names)


def all_in(parser, pieces):
    """Everything that a parser makes of these pieces, once the last has arrived."""
    found = [request for piece in pieces for request in read(parser, piece)]
    return [seen(request) for request in found]


def read(parser, data):
    """All requests in `data`, and the error after them."""
    found = []
    try:
        exchange = parser.read(data)
        while exchange is not None:
            found.append(exchange)
            exchange = parser.take()
    except GatewayError as error:
        found.append((type(error), error.message))
    return found


def after(*requests):
    """A parser that has seen these."""
    parser = RequestParser(LIMIT)
    for data in requests:
        read(parser, data)
    return parser


@pytest.mark.parametrize(
    "data",
    [
        post(b"another body"),
        post(b""),
        post(b"x" * 2000),
        post().replace(b"5", b"05", 1),
        post(head=HEAD.replace(b"Value", b"Other")),
        post(head=HEAD.replace(b"/v1/x", b"/v1/xx")),
        post(head=HEAD.replace(b"POST", b"post")),
        post() + post(b"pipelined"),
        post()[:-2],
        post()[:40],
        post()[:5],
        b"\r\n" + post(),
        HEAD.replace(b"%d", b"") + b"hello",
        HEAD.replace(b"%d", b"-5") + b"hello",
        HEAD.replace(b"%d", b"5 ") + b"hello",
        HEAD.replace(b"%d", b"+5") + b"hello",
        HEAD.replace(b"%d", b"5\r\ncontent-length: 5") + b"hello",
        HEAD.replace(b"%d", b"0000000000000005") + b"hello",
        HEAD.replace(b"%d", b"\xd9\xa5") + b"hello",
        post(head=HEAD.replace(b"X-Name", b"Transfer-Encoding")),
        post(head=HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")),
        b"garbage\r\n\r\n",
    ],
)
def test_request_after_a_known_head_is_read_as_by_a_new_parser(data):
    """Also when it only resembles the head, is incomplete, or comes with another one."""
    assert all_in(after(post()), [data]) == all_in(RequestParser(LIMIT), [data])


@given(
    st.lists(st.sampled_from([HEAD, HEAD.replace(b"Value", b"V"), HEAD.replace(b"\r\nX-", b"\r\nExpect: x\r\nX-")])),
    st.binary(max_size=40),
    st.integers(1, 200),
)
def test_requests_of_a_connection_are_read_as_by_new_parsers(heads, body, step):
    """However they are split, and whatever was known before."""
    parser = RequestParser(LIMIT)
    for number, head in enumerate(heads):
        data = post(body * (number % 3), head)
        pieces = [data[at : at + step] for at in range(0, len(data), step)]
        assert all_in(parser, pieces) == all_in(RequestParser(LIMIT), pieces)


def test_headers_of_one_request_are_not_those_of_the_next():
    """An application may change the list in its scope."""
    parser = after(post())
    first = parser.read(post(b"one"))
    first.headers.clear()
    assert parser.read(post(b"three")).headers == [(b"host", b"a"), (b"content-length", b"5"), (b"x-name", b"Value")]


def test_derived_facts_live_as_long_as_the_head_stays_the_same():
    """So that an application need not look at the same headers again."""
    parser = RequestParser(LIMIT)
    first = parser.read(post(b"one"))
    first.derived["key"] = "value"
    assert parser.read(post(b"other")).derived is first.derived
    assert parser.read(post(head=HEAD.replace(b"Value", b"Other"))).derived == {}
    assert parser.read(post()).derived == {}


def test_first_request_with_the_latest_head_of_another_connection_has_its_derived_facts():
    """A client that opens many connections repeats its head in each."""
    latest = LatestHead()
    first = RequestParser(LIMIT, latest).read(post(b"one"))
    parser = RequestParser(LIMIT, latest)
    second = parser.read(post(b"other"))
    assert second.derived is first.derived
    assert second.body == [b"other"]
    RequestParser(LIMIT, latest).read(post(head=HEAD.replace(b"Value", b"Other")))
    assert parser.read(post()).derived is first.derived
    assert RequestParser(LIMIT, latest).read(post()).derived == {}


@pytest.mark.parametrize("name", [b"Authorization", b"X-Api-Key", b"api-key", b"Cookie"])
def test_head_with_a_secret_is_of_its_connection_alone(name):
    """It is not compared with what other clients send, and does not outlive the connection."""
    latest = LatestHead()
    head = HEAD.replace(b"X-Name", name)
    first = RequestParser(LIMIT, latest).read(post(b"one", head))
    assert first.headers[-1][0] == name.lower()
    assert latest.known is None
    assert RequestParser(LIMIT, latest).read(post(b"two", head)).derived is not first.derived


def test_heads_that_always_differ_are_not_remembered():
    """A client that sends a new header with each request does not pay for it."""
    parser = RequestParser(LIMIT)
    for number in range(UNLIKE_HEADS):
        parser.read(post(head=HEAD.replace(b"Value", b"%d" % number).replace(b"Length: %d" % number, b"Length: %d")))
    last = parser._known
    parser.read(post())
    assert parser._known is last
