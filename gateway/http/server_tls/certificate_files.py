"""The files of a server's certificate: read, checked, and made into an `ssl.SSLContext`. Blocking.

OpenSSL reports an unusable file in its own words and asks the terminal for the password of an encrypted key; here each
fault is one sentence about one file.
"""

from __future__ import annotations

import ssl
import time
from calendar import timegm
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

__all__ = [
    "HTTP_1",
    "CertificateFiles",
    "FileKey",
    "LoadedCertificate",
    "UnusableCertificate",
    "load_context",
    "replace_certificate",
]

HTTP_1 = ("http/1.1",)

FileKey: TypeAlias = Literal["cert", "key", "client_ca"]


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Paths of the certificate with its chain, of its private key, and of the CA of clients; all in PEM form.

    Without `client_ca` clients need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None


class UnusableCertificate(Exception):
    """One of the files cannot be used. `key` says which one; the text says why."""

    def __init__(self, key: FileKey, path: Path, reason: str) -> None:
        super().__init__(f"{path} {reason}")
        self.key: FileKey = key
        self.path = path
        self.reason = reason


@dataclass(frozen=True, slots=True)
class LoadedCertificate:
    """What the files contain now: a context for new connections, and when the certificate expires, in unix seconds."""

    context: ssl.SSLContext
    expires_at: float


def load_context(files: CertificateFiles, protocols: tuple[str, ...] = HTTP_1) -> LoadedCertificate:
    """Read the files.

    Args:
        files: Where they are.
        protocols: What clients may choose from (ALPN, RFC 7301).

    Raises:
        UnusableCertificate: One of them cannot be used.
    """
    pem = _read("cert", files.cert)
    expires_at = _expiry(files.cert, pem)
    _read("key", files.key)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(list(protocols))
    replace_certificate(context, files)
    if files.client_ca is not None:
        _read("client_ca", files.client_ca)
        try:
            context.load_verify_locations(files.client_ca)
        except OSError as error:
            raise UnusableCertificate("client_ca", files.client_ca, "has no certificate in PEM form") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return LoadedCertificate(context, expires_at)


def replace_certificate(context: ssl.SSLContext, files: CertificateFiles) -> None:
    """Use the certificate and key as they are now for new connections of a context. Raises UnusableCertificate."""

    def no_password() -> str:
        raise UnusableCertificate("key", files.key, "is encrypted; cortex cannot ask for its password")

    try:
        context.load_cert_chain(files.cert, files.key, password=no_password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            reason = f"does not belong to the certificate in {files.cert}"
            raise UnusableCertificate("key", files.key, reason) from error
        if _is_certificate(files.cert):
            raise UnusableCertificate("key", files.key, "has no private key in PEM form") from error
        raise UnusableCertificate("cert", files.cert, "has no certificate in PEM form") from error
    except OSError as error:
        raise UnusableCertificate("cert", files.cert, f"cannot be read: {error.strerror}") from error


def _read(key: FileKey, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableCertificate(key, path, f"cannot be read: {error.strerror or error}") from error


def _is_certificate(path: Path) -> bool:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(path)
    except OSError:
        return False
    return True


# When a certificate expires. The standard library reads that of a connection's peer only.

_BEGIN, _END = b"-----BEGIN CERTIFICATE-----", b"-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0xA0, 0x17, 0x18


def _expiry(path: Path, pem: bytes) -> float:
    """`notAfter` of the first certificate in the file, in unix seconds (RFC 5280, section 4.1)."""
    begin = pem.find(_BEGIN)
    end = pem.find(_END, begin)
    if begin < 0 or end < 0:
        raise UnusableCertificate("cert", path, "has no certificate in PEM form")
    try:
        der = ssl.PEM_cert_to_DER_cert(pem[begin : end + len(_END)].decode("ascii"))
        fields = _elements(_elements(_elements(der)[0][1])[0][1])  # of the tbsCertificate
        validity = fields[4 if fields[0][0] == _VERSION else 3][1]
        return _time(*_elements(validity)[1])
    except (ValueError, IndexError) as error:
        raise UnusableCertificate("cert", path, "has a malformed certificate") from error


def _elements(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of each element (X.690, section 8.1)."""
    found, at = [], 0
    while at < len(der):
        tag, length, at = der[at], der[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            length, at = int.from_bytes(der[at : at + size], "big"), at + size
        found.append((tag, der[at : at + length]))
        at += length
    return found


def _time(tag: int, content: bytes) -> float:
    text = content.decode("ascii")
    if tag == _UTC_TIME:
        text = ("20" if int(text[:2]) < 50 else "19") + text  # RFC 5280, section 4.1.2.5.1
    elif tag != _GENERALIZED_TIME:
        raise ValueError(f"tag {tag} is no time")
    return float(timegm(time.strptime(text, "%Y%m%d%H%M%SZ")))
