"""Why a connection failed, in words and without addresses."""

import errno
import socket
import ssl

import httpx
import pytest
import trio

from gateway.http.sockets import connect_error_reason


def caused_by(error, cause):
    error.__cause__ = cause
    return error


def bad_certificate():
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    error.verify_message, error.reason = "self-signed certificate", "CERTIFICATE_VERIFY_FAILED"
    return error


def wrong_version():
    error = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ECONNREFUSED, "Connect call failed ('127.0.0.1', 42205)"), "connection refused"),
        (
            caused_by(
                OSError("all attempts to connect to beast:1 failed"),
                ExceptionGroup("", [OSError(errno.ECONNREFUSED, "x 127.0.0.1"), OSError(errno.EHOSTUNREACH, "x ::1")]),
            ),
            "connection refused; no route to host",
        ),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "its host name does not resolve"),
        (
            caused_by(trio.BrokenResourceError(), bad_certificate()),
            "TLS failed: certificate verify failed: self-signed certificate",
        ),
        (
            caused_by(httpx.ConnectError(""), caused_by(trio.BrokenResourceError(), wrong_version())),
            "TLS failed: wrong version number",
        ),
        (
            caused_by(trio.BrokenResourceError(), ssl.SSLEOFError(8, "EOF occurred")),
            "TLS failed: the connection was closed",
        ),
        (UnicodeError("label too long"), "its host name is not valid"),
        (httpx.RemoteProtocolError("Server disconnected"), "Server disconnected"),
        (httpx.ConnectError(""), "ConnectError"),
    ],
)
def test_reason_is_the_first_cause_in_words(error, reason):
    """Wrappers without text are looked through, and clients see no address."""
    assert connect_error_reason(error) == reason
