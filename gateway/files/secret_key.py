"""The gateway's secret key, a file in its state directory. Copies of a gateway share it. Blocking."""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path

import structlog

from gateway.files.state_directory import give_to_owner_of_directory

__all__ = ["FILE_NAME", "KEY_BYTES", "FaultyKey", "read_or_create", "read_or_temporary"]

log = structlog.get_logger("cortex.gateway")

KEY_BYTES = 32
FILE_NAME = "secret.key"


class FaultyKey(Exception):
    """The key file exists, but is none. The text is for operators."""


def read_or_temporary(directory: Path) -> bytes:
    """The key in the state directory. If there can be none, a key for this process only, and a warning."""
    try:
        return read_or_create(directory)
    except (OSError, FaultyKey) as error:
        log.warning(
            "secret_key_unusable",
            path=str(directory / FILE_NAME),
            reason=str(error),
            consequence="reasoning that clients send back is ignored after a restart, and by other gateways",
        )
        return secrets.token_bytes(KEY_BYTES)


def read_or_create(directory: Path) -> bytes:
    """The key in `secret.key` of this directory. Creates the file, readable by its owner only, if there is none.

    Several gateways may start at the same time: the first to create the file wins, and the others read it.

    Raises:
        OSError: The file can be neither read nor created.
        FaultyKey: The file does not contain a key.
    """
    path = directory / FILE_NAME
    with suppress(FileNotFoundError):
        return _read(path)
    new = directory / f".{FILE_NAME}.{secrets.token_hex(4)}.new"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123 - Path.open takes no descriptor
            file.write(f"{secrets.token_hex(KEY_BYTES)}\n".encode())
            file.flush()
            os.fsync(descriptor)
        give_to_owner_of_directory(new)
        with suppress(FileExistsError):
            path.hardlink_to(new)  # unlike a rename, this never replaces another gateway's key
    finally:
        new.unlink()
    return _read(path)


def _read(path: Path) -> bytes:
    text = path.read_text("ascii", "replace").strip()
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES:
        raise FaultyKey(f"{path} must contain {2 * KEY_BYTES} hexadecimal digits: delete it to have a new key made")
    return key
