"""Which gateways the command line trusts when it speaks TLS, and with which certificate it introduces itself."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gateway.config.settings import TlsSettings

__all__ = ["CannotTrust", "TlsTrust"]


class CannotTrust(Exception):
    """A file cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class TlsTrust:
    """Files in PEM form.

    Args:
        ca: Trusted instead of the system's certificates.
        cert, cert_key: The client's own certificate and key, for a gateway with `[tls] client_ca`.
        pinned: The very certificate of a gateway on this host; its name is not compared, because `127.0.0.1` is none.
    """

    ca: Path | None = None
    cert: Path | None = None
    cert_key: Path | None = None
    pinned: Path | None = None

    @classmethod
    def of_host(cls, tls: TlsSettings, environ: Mapping[str, str]) -> TlsTrust:
        """For the gateway whose `cortex.toml` is on this host."""
        return cls(pinned=tls.cert, **_own(environ))

    @classmethod
    def of_remote(
        cls, ca: Path | None, cert: Path | None, cert_key: Path | None, environ: Mapping[str, str]
    ) -> TlsTrust:
        """For a gateway that is named by its URL. `CORTEX_CLIENT_CERT` and `CORTEX_CLIENT_KEY` win over a profile."""
        own = _own(environ)
        return cls(ca, own["cert"] or cert, own["cert_key"] or cert_key)

    def context(self) -> ssl.SSLContext:
        """Read the files. Raises CannotTrust."""
        try:
            context = ssl.create_default_context(cafile=self.ca or self.pinned)
        except OSError as error:
            raise CannotTrust(f"{self.ca or self.pinned} has no certificate in PEM form: {error}") from error
        if self.pinned is not None and self.ca is None:
            context.check_hostname = False
            context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate that is no CA may be trusted, too
        if self.cert is not None:
            try:
                context.load_cert_chain(self.cert, self.cert_key)
            except OSError as error:
                raise CannotTrust(f"{self.cert} cannot be used with key {self.cert_key}: {error}") from error
        return context


def _own(environ: Mapping[str, str]) -> dict[str, Path | None]:
    names = {"cert": "CORTEX_CLIENT_CERT", "cert_key": "CORTEX_CLIENT_KEY"}
    return {key: Path(environ[name]) if environ.get(name) else None for key, name in names.items()}
