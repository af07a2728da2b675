"""Redirects: which are followed, and with what request."""

import pytest
from fakes.exchanges import ORIGIN, REQUEST
from fakes.scripted import MemoryNetwork, read_request, with_length

from gateway.config.settings import DeadlineSettings
from gateway.http.phase_deadlines import PhaseDeadlines
from gateway.http.pool import UpstreamPool
from gateway.http.redirect import new_target, with_target

MESSAGE = (b"POST /v1/chat/completions?a=1 HTTP/1.1\r\nhost: beast:8080\r\ncontent-length: 2\r\n\r\n", b"{}")


@pytest.mark.parametrize(
    ("status", "location", "target"),
    [
        (307, b"/v1/chat/completions/", b"/v1/chat/completions/"),
        (308, b"http://beast:8080/x?y=%2F", b"/x?y=%2F"),
        (308, b"HTTP://BEAST:8080/x#part", b"/x"),
        (307, b"completions/", b"/v1/chat/completions/"),
        (307, b"?b=2", b"/v1/chat/completions?b=2"),
        (307, b"//beast:8080", b"/"),
        (301, b"/x", None),
        (302, b"/x", None),
        (303, b"/x", None),
        (307, b"http://beast/x", None),
        (307, b"https://beast:8080/x", None),
        (307, b"//other:8080/x", None),
        (307, b"http://user@beast:8080/x", None),
        (307, b"/with space", None),
        (307, b"/\xff", None),
        (307, b"http://[x/", None),
        (307, b"http://beast:99999/", None),
        (307, b"", None),
        (307, None, None),
    ],
)
def test_only_307_and_308_within_the_origin_are_followed(status, location, target):
    """All others are for the operator: the endpoint in cortex.toml is wrong."""
    headers = [] if location is None else [(b"location", location)]

    assert new_target(status, headers, MESSAGE, "http://beast:8080") == target


def test_two_locations_are_not_followed():
    """They could disagree."""
    headers = [(b"location", b"/x"), (b"location", b"/y")]

    assert new_target(307, headers, MESSAGE, "http://beast:8080") is None


def test_redirected_request_differs_in_its_target_only():
    """Headers and body stay."""
    assert with_target(MESSAGE, b"/x") == (MESSAGE[0].replace(b"/v1/chat/completions?a=1", b"/x"), b"{}")


@pytest.mark.parametrize("closes", [True, False])
async def test_redirect_is_followed_once(nursery, closes):
    """On the same connection if the neuron keeps it; a second redirect is the answer."""
    received = []
    more = "location: /again\r\n" + ("connection: close\r\n" if closes else "")

    async def peer(stream):
        while request := await read_request(stream):
            received.append(request.split(b" ")[1])
            await stream.send_all(with_length(b"", status="307 Temporary Redirect", more=more))
            if closes:
                await stream.aclose()
                return

    upstream = UpstreamPool(connect=MemoryNetwork(nursery, peer).connect)
    with upstream.exchange(ORIGIN, REQUEST, PhaseDeadlines(DeadlineSettings())) as exchange:
        response = await exchange.response()
        assert response.status == 307

    assert received[1:] == [b"/again"]
    assert upstream.statistics()["opened"] == (2 if closes else 1)
    assert upstream.in_use == 0
    upstream.close()
