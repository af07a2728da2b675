"""Certificates made on the spot with the openssl command: a CA, and certificates that it has issued."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Issued:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """A CA in a folder of the test."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self.folder = folder
        self.cert, self._key = folder / f"{name}.pem", folder / f"{name}.key"
        extensions = (
            "-addext",
            "basicConstraints=critical,CA:TRUE",
            "-addext",
            "keyUsage=critical,keyCertSign,cRLSign",
        )
        _openssl(
            "req", "-x509", *_NEW_KEY, "-keyout", self._key, "-out", self.cert, "-subj", f"/CN={name}", *extensions
        )

    def issue(self, name: str, *, days: int = 365, serial: int = 1) -> Issued:
        """A certificate for localhost and 127.0.0.1, for servers and clients. A negative number of days: expired."""
        cert, key = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        request, extensions = self.folder / f"{name}.csr", self.folder / f"{name}.ext"
        extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n")
        _openssl("req", *_NEW_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        ca = ("-CA", self.cert, "-CAkey", self._key, "-set_serial", serial, "-extfile", extensions)
        _openssl("x509", "-req", "-in", request, "-out", cert, *ca, "-days", days)
        return Issued(cert, key)


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-sha256")


def _openssl(*arguments: object) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)
