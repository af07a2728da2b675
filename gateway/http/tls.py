"""Whom to believe when we connect over TLS: one context for requests and polls alike, so that they agree."""

from __future__ import annotations

import functools
import ssl

__all__ = ["context"]


@functools.cache
def context() -> ssl.SSLContext:
    """The system's certificates, or those SSL_CERT_FILE or SSL_CERT_DIR names. Made once: reading them takes 20 ms."""
    made = ssl.create_default_context()
    made.set_alpn_protocols(["http/1.1"])
    return made
