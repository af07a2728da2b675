"""Which certificates the gateway trusts, for inference requests and control calls alike."""

from __future__ import annotations

import functools
import ssl

__all__ = ["context"]


@functools.cache
def context() -> ssl.SSLContext:
    """Return the client context: the system's certificates, or those of SSL_CERT_FILE or SSL_CERT_DIR.

    Cached, because reading the certificates takes 20 ms.
    """
    client = ssl.create_default_context()
    client.set_alpn_protocols(["http/1.1"])
    return client
