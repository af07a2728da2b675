"""The bytes of an outgoing request to a neuron."""

import pytest

from gateway.config.settings import NeuronSettings
from gateway.errors import UpstreamMalformedResponse
from gateway.fleet.engine_access import EngineAccess
from gateway.fleet.neuron_request import build_request, neuron_model_name
from gateway.fleet.route import Route

CHAT = b"/v1/chat/completions"
ENGINE = EngineAccess.of(
    NeuronSettings("a", "http://a", "openai", base_path="/api/v3", api_key="k", serves={"ours": "theirs"})
)


def test_request_to_a_neuron_has_its_origin_its_path_and_our_model_id():
    """Head and a small body are one piece."""
    route = Route("a", "ours", "http://a:8080/prefix")

    origin, message = build_request(route, CHAT, b"accept: */*\r\n", b"{}")

    assert (origin.host, origin.port) == ("a", 8080)
    assert message == (
        b"POST /prefix/v1/chat/completions HTTP/1.1\r\nhost: a:8080\r\naccept: */*\r\ncontent-length: 2\r\n\r\n{}",
    )
    assert neuron_model_name(route) == "ours"


def test_request_to_an_engine_has_its_path_its_key_and_its_model_name():
    """`base_path`, `api_key` and `serves` of the `[[neurons]]` table apply."""
    route = Route("a", "ours", "http://a", ENGINE)

    _, (message,) = build_request(route, CHAT, b"", b"{}")

    assert message.startswith(b"POST /api/v3/chat/completions HTTP/1.1\r\n")
    assert b"\r\nauthorization: Bearer k\r\n" in message
    assert neuron_model_name(route) == "theirs"


def test_large_body_is_not_copied():
    """Head and body are two pieces, and the second is the body itself."""
    body = b" " * 128 * 1024

    _, (head, sent) = build_request(Route("a", "m", "http://a"), CHAT, b"", body)

    assert head.endswith(b"content-length: 131072\r\n\r\n")
    assert sent is body


@pytest.mark.parametrize(("length", "framing"), [(7, b"content-length: 7"), (None, b"transfer-encoding: chunked")])
def test_upload_gives_the_length_of_the_body(length, framing):
    """The body of an upload follows later; a length that is not known is sent as chunks."""

    class Upload:
        def __init__(self):
            self.length = length

        async def receive(self):
            return b""

    _, (head,) = build_request(Route("a", "m", "http://a"), CHAT, b"", b"", upload=Upload())

    assert head.endswith(framing + b"\r\n\r\n")


def test_inference_url_that_is_none_is_an_upstream_error():
    """The neuron is at fault, not the request."""
    with pytest.raises(UpstreamMalformedResponse, match="the neuron's inference URL is not an http"):
        build_request(Route("a", "m", "ftp://a"), CHAT, b"", b"{}")
