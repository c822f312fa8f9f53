"""Certificates and node keys for a rehearsal on loopback, made in memory and written to a folder.

For devices of your own take certificates that your organisation issues; the files are the same.
"""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 2
PEM = serialization.Encoding.PEM


class Certificates(NamedTuple):
    """Files in PEM: the authority's certificate, the server's and its key."""

    ca: Path
    server: Path
    server_key: Path


class Authority:
    """Issues certificates, and says which of them are revoked."""

    def __init__(self, name: str = "fedpers rehearsal") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.name = _named(name)
        self.certificate = (
            self._builder(self.name, self._key.public_key())
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(self._key, hashes.SHA256())
        )

    def write(self, path: Path) -> Path:
        """Write its own certificate."""
        path.write_bytes(self.certificate.public_bytes(PEM))
        return path

    def server(self, certificate: Path, key: Path) -> None:
        """Issue a certificate for this machine's loopback."""
        addresses = [x509.IPAddress(ipaddress.ip_address(text)) for text in ("127.0.0.1", "::1")]
        names = x509.SubjectAlternativeName([x509.DNSName("localhost"), *addresses])
        self._issue("localhost", ExtendedKeyUsageOID.SERVER_AUTH, certificate, key, names)

    def device(self, name: str, certificate: Path, key: Path) -> x509.Certificate:
        """Issue a device's certificate: ``name`` is its common name."""
        return self._issue(name, ExtendedKeyUsageOID.CLIENT_AUTH, certificate, key)

    def revoke(self, revoked: Iterable[x509.Certificate], path: Path) -> Path:
        """Write the list of the certificates that are revoked; all others hold."""
        now = datetime.now(UTC)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.name)
            .last_update(now - timedelta(hours=1))
            .next_update(now + timedelta(days=DAYS))
        )
        for one in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(one.serial_number)
            builder = builder.add_revoked_certificate(entry.revocation_date(now).build())
        path.write_bytes(builder.sign(self._key, hashes.SHA256()).public_bytes(PEM))
        return path

    def _issue(
        self,
        name: str,
        purpose: x509.ObjectIdentifier,
        certificate: Path,
        key: Path,
        *extensions: x509.ExtensionType,
    ) -> x509.Certificate:
        own = ec.generate_private_key(ec.SECP256R1())
        builder = (
            self._builder(_named(name), own.public_key())
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([purpose]), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        issued = builder.sign(self._key, hashes.SHA256())
        certificate.write_bytes(issued.public_bytes(PEM))
        _write_secret(key, _private(own, serialization.PrivateFormat.PKCS8))
        return issued

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=DAYS))
        )


def make_certificates(folder: Path) -> Certificates:
    """An authority, and a certificate of it for this machine's loopback."""
    authority = Authority()
    files = Certificates(folder / "ca.crt", folder / "server.pem", folder / "server.key")
    authority.write(files.ca)
    authority.server(files.server, files.server_key)
    return files


def make_node_key(folder: Path, name: str) -> tuple[Path, Path]:
    """A node's key pair in OpenSSH's format: the private and the public file."""
    key = ec.generate_private_key(ec.SECP384R1())
    private, public = folder / name, folder / f"{name}.pub"
    _write_secret(private, _private(key, serialization.PrivateFormat.OpenSSH))
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    public.write_bytes(key.public_key().public_bytes(encoding, form) + b"\n")
    return private, public


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    names = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    no = dict.fromkeys((*names, "key_agreement", "encipher_only", "decipher_only"), False)
    return x509.KeyUsage(**no, key_cert_sign=signs_certificates, crl_sign=signs_certificates)


def _private(key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> bytes:
    return key.private_bytes(PEM, form, serialization.NoEncryption())


def _write_secret(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as file:
        file.write(data)
