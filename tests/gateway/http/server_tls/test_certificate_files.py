"""Certificate files: what is accepted, and what is said of each that is not."""

import ssl
import subprocess
import time

import pytest
from fakes.certificates import Authority

from gateway.http.server_tls.certificate_files import CertificateFiles, UnusableCertificate, load_context


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server(ca):
    return ca.issue("server")


def test_expiry_is_that_of_openssl(server):
    text = subprocess.run(
        ["openssl", "x509", "-in", server.cert, "-noout", "-enddate"], capture_output=True, text=True, check=True
    ).stdout
    loaded = load_context(CertificateFiles(server.cert, server.key))
    assert loaded.expires_at == ssl.cert_time_to_seconds(text.strip().removeprefix("notAfter="))
    assert 364 * 86400 < loaded.expires_at - time.time() <= 365 * 86400


def test_expiry_after_2049_has_another_encoding(ca):
    """GeneralizedTime instead of UTCTime."""
    issued = ca.issue("long", days=36500)
    loaded = load_context(CertificateFiles(issued.cert, issued.key))
    assert loaded.expires_at - time.time() == pytest.approx(36500 * 86400, rel=0.001)


def test_context_speaks_tls_1_2_and_later_and_demands_client_certificates_of_its_ca(server, ca):
    context = load_context(CertificateFiles(server.cert, server.key, ca.cert)).context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert load_context(CertificateFiles(server.cert, server.key)).context.verify_mode == ssl.CERT_NONE


def test_each_unusable_file_is_named_with_its_reason(server, ca, tmp_path):
    other, missing, empty = ca.issue("other"), tmp_path / "missing.pem", tmp_path / "empty.pem"
    empty.touch()
    malformed = tmp_path / "malformed.pem"
    malformed.write_text("-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----\n")
    encrypted = tmp_path / "encrypted.key"
    subprocess.run(
        ["openssl", "pkey", "-in", server.key, "-aes256", "-passout", "pass:secret", "-out", encrypted],
        check=True,
        capture_output=True,
    )
    for files, key, reason in (
        (CertificateFiles(missing, server.key), "cert", "cannot be read: No such file or directory"),
        (CertificateFiles(tmp_path, server.key), "cert", "cannot be read: Is a directory"),
        (CertificateFiles(empty, server.key), "cert", "has no certificate in PEM form"),
        (CertificateFiles(malformed, server.key), "cert", "has a malformed certificate"),
        (CertificateFiles(server.cert, missing), "key", "cannot be read: No such file or directory"),
        (CertificateFiles(server.cert, empty), "key", "has no private key in PEM form"),
        (CertificateFiles(server.cert, other.key), "key", f"does not belong to the certificate in {server.cert}"),
        (CertificateFiles(server.cert, encrypted), "key", "is encrypted; cortex cannot ask for its password"),
        (CertificateFiles(server.cert, server.key, missing), "client_ca", "cannot be read: No such file or directory"),
        (CertificateFiles(server.cert, server.key, empty), "client_ca", "has no certificate in PEM form"),
    ):
        with pytest.raises(UnusableCertificate) as raised:
            load_context(files)
        assert (raised.value.key, raised.value.reason) == (key, reason)
