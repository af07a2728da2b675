"""Secrets of keys in log events."""

import pytest

from gateway.access.keys.secret import new_secret
from gateway.telemetry.printable import hide_secret

SECRET = new_secret("alice")


@pytest.mark.parametrize(
    ("form", "shown"),
    [
        ("{0}", "ctx_alice_…"),
        ("/v1/models/{0}", "/v1/models/ctx_alice_…"),
        ("model '{0}' not found", "model 'ctx_alice_…' not found"),
        ("{0} and {0}", "ctx_alice_… and ctx_alice_…"),
        ("x{0}y", "xctx_alice_…"),
    ],
)
def test_secret_is_hidden_wherever_a_client_put_it(form, shown):
    assert hide_secret(form.format(SECRET)) == shown


def test_other_texts_stay():
    for text in ("", "ctx_ is a prefix", "ctx_a_short", "contexts"):
        assert hide_secret(text) == text
