"""`/v1/models` in the format of Anthropic's API."""

import json

import anthropic
import httpx2  # what the SDK speaks HTTP with
import msgspec

from gateway.server import models_anthropic
from gateway.server.models_api import Entry


def test_models_are_listed_on_one_page():
    """With the limits that are known; `created_at` is in RFC 3339 format."""
    entry = Entry("lab/a", "model", 1767225600, "helexa", True, (), (), limit={"context": 4096, "output": 512})
    without_limits = Entry("lab/b", "model", 1767225600, "helexa", False, (), ())
    page = json.loads(models_anthropic.listing([entry, without_limits], {}))

    assert page["data"][0] == {
        "type": "model",
        "id": "lab/a",
        "display_name": "lab/a",
        "created_at": "2026-01-01T00:00:00Z",
        "lifecycle": "active",
        "max_input_tokens": 4096,
        "max_tokens": 512,
    }
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("lab/a", "lab/b", False)
    assert json.loads(models_anthropic.single(without_limits)) == page["data"][1]
    assert json.loads(models_anthropic.listing([], {}))["first_id"] is None
    with_input_limit = msgspec.structs.replace(entry, limit={"context": 8192, "input": 4096})
    model = json.loads(models_anthropic.single(with_input_limit))
    assert (model["max_input_tokens"], model["max_tokens"]) == (4096, None)


def test_sdk_reads_the_list():
    """The official SDK parses the page into its own types."""
    entry = Entry("lab/a", "model", 1767225600, "helexa", True, (), ())
    body = models_anthropic.listing([entry], {})
    transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=body))
    http_client = httpx2.Client(transport=transport)
    sdk = anthropic.Anthropic(api_key="k", base_url="http://gateway", max_retries=0, http_client=http_client)
    [model] = sdk.models.list()
    assert (model.id, model.created_at.year) == ("lab/a", 2026)
