"""The certificate in force on our ports, and its reload when the files change."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import structlog
import trio

from catalogue.toml.faults import Fault, FaultyFile
from gateway.config.settings import TlsSettings
from gateway.http.server_tls.certificate_files import (
    CertificateFiles,
    LoadedCertificate,
    UnusableCertificate,
    load_context,
    replace_certificate,
)

__all__ = ["EXPIRES_SOON_S", "CertificateStore", "open_certificates"]

LOOK_INTERVAL_S = 1.0  # three `stat` calls; a new certificate is in force this long after it was written
ANSWER_DEADLINE_S = 10.0  # local files take less than a millisecond, a slow network file system seconds
EXPIRES_SOON_S = 14 * 86400.0  # issuers of 90-day certificates renew 30 days before the end

_Stamp: TypeAlias = tuple[tuple[int, int, int] | None, ...]

log = structlog.get_logger("cortex.tls")


class CertificateStore:
    """Has the certificate in force.

    A new pair that cannot be used, also one of which only half was written yet, changes nothing; it is tried again
    until it can be used. The files behind symlinks count, so a ConfigMap or Secret may be mounted there.

    Args:
        files: Where the files are.
        unix_time: Returns seconds since 1970.

    Attributes:
        error: Why the files as they are now are not in force; None if they are.

    Raises:
        UnusableCertificate: The files cannot be used. Blocks on the files.
    """

    def __init__(self, files: CertificateFiles, *, unix_time: Callable[[], float] = time.time) -> None:
        self.files = files
        self.error: str | None = None
        self._unix_time = unix_time
        self._stamp = self._look()
        self._loaded = load_context(files)
        self._shared: list[ssl.SSLContext] = []
        self._limiter = trio.CapacityLimiter(1)

    def context(self) -> ssl.SSLContext:
        """For a new connection."""
        return self._loaded.context

    def shared_context(self, protocols: tuple[str, ...]) -> ssl.SSLContext:
        """A context for a server that takes one for all its connections. A new client CA does not reach it."""
        context = load_context(self.files, protocols).context
        self._shared.append(context)
        return context

    def expiry_problem(self) -> str | None:
        """Why the certificate in force needs to be renewed, in words; None if it does not."""
        expires_at, now = self._loaded.expires_at, self._unix_time()
        day = time.strftime("%Y-%m-%d", time.gmtime(expires_at))
        if expires_at <= now:
            return f"expired on {day}: clients refuse it; renew it"
        if expires_at - now < EXPIRES_SOON_S:
            return f"expires on {day}, in {(expires_at - now) / 86400:.0f} days: renew it"
        return None

    def warnings(self) -> tuple[Fault, ...]:
        """For `cortex check` and at the start."""
        problem = self.expiry_problem()
        return () if problem is None else (Fault(str(self.files.cert), None, "tls.cert", problem),)

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Reload whenever the files change, until cancelled. Started at once."""
        task_status.started()
        while True:
            await trio.sleep(LOOK_INTERVAL_S)
            try:
                with trio.fail_after(ANSWER_DEADLINE_S):
                    found = await trio.to_thread.run_sync(
                        self._load_if_changed, abandon_on_cancel=True, limiter=self._limiter
                    )
            except trio.TooSlowError:
                self._set_error(f"could not be read within {ANSWER_DEADLINE_S:g} s")
            except UnusableCertificate as error:
                self._set_error(str(error))
            else:
                self._put_in_force(found)

    def _load_if_changed(self) -> tuple[_Stamp, LoadedCertificate] | None:
        """What the files contain, if they have changed since the last good ones, or may have during the last look."""
        stamp = self._look()
        if stamp == self._stamp and self.error is None:
            return None
        return stamp, load_context(self.files)

    def _put_in_force(self, found: tuple[_Stamp, LoadedCertificate] | None) -> None:
        if found is None:
            return
        stamp, loaded = found
        try:
            for context in self._shared:
                replace_certificate(context, self.files)
        except UnusableCertificate as error:  # replaced since it was read
            self._set_error(str(error))
            return
        self._stamp, self._loaded, self.error = stamp, loaded, None
        log.info("certificate_in_force", path=str(self.files.cert), expires_at=loaded.expires_at)

    def _set_error(self, reason: str) -> None:
        if reason != self.error:
            log.error("certificate_rejected", reason=reason, consequence="the one in force stays")
        self.error = reason

    def _look(self) -> _Stamp:
        paths = (self.files.cert, self.files.key, self.files.client_ca)
        return tuple(None if path is None else _stamp_of(path) for path in paths)


def open_certificates(tls: TlsSettings) -> CertificateStore | None:
    """The certificate that `[tls]` names; None if it names none. Blocks on the files.

    Raises:
        FaultyFile: A file cannot be used.
    """
    if tls.cert is None or tls.key is None:
        return None
    try:
        return CertificateStore(CertificateFiles(tls.cert, tls.key, tls.client_ca))
    except UnusableCertificate as error:
        raise FaultyFile((Fault(str(error.path), None, f"tls.{error.key}", error.reason),)) from error


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
