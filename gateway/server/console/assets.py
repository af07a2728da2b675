"""The files of the console, as the admin port serves them: from the package, compressed once, with strict headers.

`index.html` names the other files below `/console/VERSION/`, where a browser keeps them for good: another version has
other addresses. Modules import each other by relative paths, so a page and its modules are of one version.
"""

from __future__ import annotations

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import trio

from gateway.asgi import Headers, Scope, Send

__all__ = ["PREFIX", "SECURITY_HEADERS", "Asset", "Assets", "load_assets", "serve_asset"]

PREFIX = "/console/"
INDEX = "index.html"
VERSION_DIGITS = 16
IMMUTABLE = b"private, max-age=31536000, immutable"  # a year, as RFC 8246 does
_VERSION = re.compile(rf"[0-9a-f]{{{VERSION_DIGITS}}}")
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
    ".LICENSE": b"text/plain; charset=utf-8",
}
CONTENT_SECURITY_POLICY = (
    b"default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    b"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
SECURITY_HEADERS: Headers = [
    (b"content-security-policy", CONTENT_SECURITY_POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
]


@dataclass(frozen=True, slots=True)
class Asset:
    """One file. `etag` is that of its content."""

    content_type: bytes
    body: bytes
    gzipped: bytes
    etag: bytes


@dataclass(frozen=True, slots=True)
class Assets:
    """Every file by its path below `static/`, and a digest of all of them."""

    files: dict[str, Asset]
    version: str

    def find(self, path: str) -> tuple[Asset | None, bool]:
        """The file of a URL's path, and whether the path names this version of it."""
        if path == "/":
            return self.files.get(INDEX), False
        version, _, name = path.removeprefix(PREFIX).partition("/")
        if _VERSION.fullmatch(version) is None:
            return self.files.get(path.removeprefix(PREFIX)), False
        # A page that was open when the gateway was upgraded gets a module of the new version: better than none.
        return self.files.get(name), version == self.version


async def serve_asset(scope: Scope, send: Send) -> bool:
    """Answer a GET of `/` or below `/console/`; False if there is no such file."""
    assets = await trio.to_thread.run_sync(load_assets) if not load_assets.cache_info().currsize else load_assets()
    asset, is_version = assets.find(scope["path"])
    if asset is None:
        return False
    request_headers = dict(scope["headers"])
    headers = [
        *SECURITY_HEADERS,
        (b"etag", asset.etag),
        (b"cache-control", IMMUTABLE if is_version else b"no-cache"),
        (b"vary", b"accept-encoding"),
    ]
    if asset.etag in request_headers.get(b"if-none-match", b""):
        await _send(send, 304, headers, b"")
        return True
    body = asset.body
    if b"gzip" in request_headers.get(b"accept-encoding", b""):
        headers.append((b"content-encoding", b"gzip"))
        body = asset.gzipped
    headers += [(b"content-type", asset.content_type), (b"content-length", b"%d" % len(body))]
    await _send(send, 200, headers, b"" if scope["method"] == "HEAD" else body)
    return True


@cache
def load_assets() -> Assets:
    """Every file. Blocking; read once per process."""
    bodies = dict(sorted(_read(resources.files(__package__) / "static", "")))
    digest = hashlib.sha256()
    for name, body in bodies.items():
        digest.update(b"%b %d " % (name.encode(), len(body)) + body)
    version = digest.hexdigest()[:VERSION_DIGITS]
    bodies[INDEX] = bodies[INDEX].replace(b'"%b' % PREFIX.encode(), b'"%b%b/' % (PREFIX.encode(), version.encode()))
    return Assets({name: _asset(name, body) for name, body in bodies.items()}, version)


def _asset(name: str, body: bytes) -> Asset:
    etag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    return Asset(_TYPES[_kind(name)], body, gzip.compress(body, mtime=0), etag)


def _read(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _read(entry, f"{name}/")
        elif _kind(name) in _TYPES:
            found.append((name, entry.read_bytes()))
    return found


def _kind(name: str) -> str:
    return name[name.rfind(".") :]


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
