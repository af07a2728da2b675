"""The files of the console, as the admin port serves them: from the package, compressed once, with strict headers."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

import trio

from gateway.asgi import Headers, Scope, Send

__all__ = ["PREFIX", "SECURITY_HEADERS", "Asset", "load_assets", "serve_asset"]

PREFIX = "/console/"
INDEX = "index.html"
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


async def serve_asset(scope: Scope, send: Send) -> bool:
    """Answer a GET of `/` or below `/console/`; False if there is no such file."""
    assets = await trio.to_thread.run_sync(load_assets) if not load_assets.cache_info().currsize else load_assets()
    path = scope["path"]
    asset = assets.get(INDEX if path == "/" else path.removeprefix(PREFIX))
    if asset is None:
        return False
    request_headers = dict(scope["headers"])
    headers = [
        *SECURITY_HEADERS,
        (b"etag", asset.etag),
        (b"cache-control", b"no-cache"),  # revalidated each time, so a page and its modules are of one version
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
def load_assets() -> dict[str, Asset]:
    """Every file, by its path below `static/`. Blocking; read once per process."""
    return dict(_read(resources.files(__package__) / "static", ""))


def _read(folder: Traversable, prefix: str) -> list[tuple[str, Asset]]:
    found: list[tuple[str, Asset]] = []
    for entry in folder.iterdir():
        name = f"{prefix}{entry.name}"
        if entry.is_dir():
            found += _read(entry, f"{name}/")
            continue
        kind = _TYPES.get(name[name.rfind(".") :])
        if kind is not None:
            body = entry.read_bytes()
            etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode()
            found.append((name, Asset(kind, body, gzip.compress(body, mtime=0), etag)))
    return found


async def _send(send: Send, status: int, headers: Headers, body: bytes) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
